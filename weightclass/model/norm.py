"""Batch norm over groups of a fixed number of images, so that micro-batches do not change what a step computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from weightclass.batching import cuts


class GroupBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that, in training, normalises each `group` consecutive images on their own.

    `group = None` (the default) and evaluation are plain batch norm. The last group may be smaller; a last group of
    one image joins the group before it, for on a 1x1 map one image has no variance.

    Running statistics move once a group, in order, as if each group were a forward pass: one batch of several groups
    and the same groups one after another as micro-batches agree in outputs, gradients and buffers.
    """

    group: int | None = None

    def __init__(self, channels: int, folds: bool = True) -> None:
        """`folds`: an exporter can fold it into the convolution before it; weighing needs to know."""
        super().__init__(channels)
        self.folds = folds

    def forward(self, input: Tensor) -> Tensor:
        """[n, C, H, W] to the same shape; group i starts at image i * group."""
        if not self.training or self.group is None:
            return super().forward(input)
        plain = super().forward
        return torch.cat([plain(chunk) for chunk in input.split(cuts(len(input), self.group))])


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Training passes inside leave the running statistics of `module` as they were."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.data.copy_(before)  # .data: autograd, which never reads them in training, need not know
