"""Lookahead (Zhang et al. 2019): k steps of the optimizer forward, then one step of the slow weights after them."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Lookahead:
    """`slow` holds the slow weights, which start as the network's own; of its buffers nothing is used.

    The optimizer's state is never touched, as in the authors' code (their `pullback_momentum="none"`).
    """

    def __init__(self, model: nn.Module, every: int, alpha: float) -> None:
        self.every, self.alpha = every, alpha
        self.slow = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After training step `step` (1-based): at each `every`-th, slow += alpha (fast - slow), and fast = slow."""
        if step % self.every == 0:
            slow, fast = list(self.slow.parameters()), list(model.parameters())
            torch._foreach_lerp_(slow, fast, self.alpha)  # type: ignore[attr-defined]
            self.hand_over(model)

    @torch.no_grad()
    def hand_over(self, model: nn.Module) -> None:
        """Give `model` the slow weights."""
        torch._foreach_copy_(list(model.parameters()), list(self.slow.parameters()))  # type: ignore[attr-defined]
