"""Batch norm over groups of a fixed number of images, or over a batch that several ranks share: neither micro-batches
nor ranks change what a step computes. (torch's SyncBatchNorm knows no CPU.)"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightclass import ranks
from weightclass.batching import cuts


class GroupBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that, in training, normalises each `group` consecutive images on their own.

    `group = None` (the default) and evaluation are plain batch norm. The last group may be smaller; a last group of
    one image joins the group before it, for on a 1x1 map one image has no variance.

    Running statistics move once a group, in order, as if each group were a forward pass: one batch of several groups
    and the same groups one after another as micro-batches agree in outputs, gradients and buffers.
    """

    group: int | None = None
    shared: bool = False
    """Whether the training passes to come see only this rank's part of the batch; without groups, statistics are then
    those of all parts."""

    def __init__(self, channels: int, folds: bool = True) -> None:
        """`folds`: an exporter can fold it into the convolution before it; weighing needs to know."""
        super().__init__(channels)
        self.folds = folds

    def forward(self, input: Tensor) -> Tensor:
        """[n, C, H, W] to the same shape; group i starts at image i * group."""
        if self.training and self.shared and self.group is None:
            return self._over_ranks(input)
        if not self.training or self.group is None:
            return super().forward(input)
        plain = super().forward
        return torch.cat([plain(chunk) for chunk in input.split(cuts(len(input), self.group))])

    def _over_ranks(self, input: Tensor) -> Tensor:
        """Each rank normalises its part with the statistics of all, and moves the running ones alike."""
        with torch.no_grad():
            mean, variance, count = _moments(input)
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        input = _Felt.apply(input, mean, (variance + self.eps).rsqrt(), count)
        return F.batch_norm(input, mean, variance, self.weight, self.bias, eps=self.eps)


def _moments(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, (biased) variance [C] and number of values of each channel, over the parts [n, C, H, W] of all ranks; from
    each part's own (Chan et al. 1979), for sums of squares would cancel."""
    channels, precise = part.shape[1], torch.promote_types(part.dtype, torch.float32)
    unused = torch.zeros(2, channels, dtype=precise, device=part.device)
    # 50 times as fast as torch.var_mean on a CPU
    mean, variance = torch.batch_norm_update_stats(part, unused[0], unused[1], 0.0)
    told = mean.new_zeros(ranks.here.size, 3, channels)
    told[ranks.here.rank] = torch.stack([mean, variance, torch.full_like(mean, part.numel() / channels)])
    ranks.add_([told])
    means, variances, counts = told.unbind(1)
    mean = (counts * means).sum(0) / counts.sum(0)
    return mean, (counts * (variances + (means - mean) ** 2)).sum(0) / counts.sum(0), counts.sum(0)


class _Felt(torch.autograd.Function):
    """The input as it is. Its gradient g comes with mean and variance taken as constants; how they follow the inputs
    of all ranks is added here: g - mean(g) - x mean(g x), x being the normalised input and the means over all parts."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, mean: Tensor, scale: Tensor, count: Tensor) -> Tensor:
        ctx.save_for_backward(input, mean, scale, count)
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        input, mean, scale, count = ctx.saved_tensors
        wide = (1, -1, 1, 1)
        normal = (input - mean.view(wide)).mul_(scale.view(wide))
        told = torch.stack([gradient.sum((0, 2, 3), dtype=mean.dtype), (gradient * normal).sum((0, 2, 3))])
        ranks.add_([told])
        average, slope = (told / count).view(2, *wide)
        return (gradient - normal.mul_(slope).add_(average)).to(input.dtype), None, None, None


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Training passes inside leave the running statistics of `module` as they were."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.data.copy_(before)  # .data: autograd, which never reads them in training, need not know
