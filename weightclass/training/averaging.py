"""The averaged twin: an exponential moving average of the weights, and of floating BN buffers alike."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """`twin` holds sum_i d^(t-i) w_i / sum_i d^(t-i): bias-corrected, so that it is right from the first step on.

    Integer buffers are copied. The average of the BN statistics serves the averaged weights (DESIGN: BN rules).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.twin = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after training step `step` (1-based)."""
        weight = (1 - self.decay) / (1 - self.decay**step)
        (averaged, counters), (current, counts) = _tensors(self.twin), _tensors(model)
        torch._foreach_lerp_(averaged, current, weight)  # type: ignore[attr-defined]
        if counters:
            torch._foreach_copy_(counters, counts)  # type: ignore[attr-defined]


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Those of floats, and the other ones."""
    every = [*model.parameters(), *model.buffers()]
    return [t for t in every if t.is_floating_point()], [t for t in every if not t.is_floating_point()]
