"""Sharpness-aware minimisation (Foret et al. 2021): follow the gradient from where, nearby, the loss is worst."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def uphill(model: nn.Module, rho: float) -> Iterator[None]:
    """Inside, the weights are moved by `rho` along their present gradient; afterwards weights and buffers (so the
    running statistics, too) are bit for bit what they were, whatever happened. No device sync."""
    weights = [parameter for parameter in model.parameters() if parameter.grad is not None]
    moved = [*weights, *model.buffers()]
    before = [tensor.detach().clone() for tensor in moved]
    try:
        _climb(weights, rho)
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, before)  # type: ignore[attr-defined]


@torch.no_grad()
def _climb(weights: list[nn.Parameter], rho: float) -> None:
    """w += rho g / ||g||, of all weights together. (A function, so that no gradient is held beyond it.)"""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    scale = rho / (nn.utils.get_total_norm(gradients) + 1e-12)
    torch._foreach_add_(weights, torch._foreach_mul(gradients, scale))  # type: ignore[attr-defined]
