"""Muon (Jordan et al. 2024): matrices step by their momentum made orthogonal, all other weights by SGD.

As in airbench94_muon.py of github.com/KellerJordan/cifar10-airbench; a convolution is the matrix [out, in x kernel].
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of X <- aX + (bA + cA^2)X, A = XX^T: steepest at 0, not exact at 1


class Muon(torch.optim.SGD):
    """SGD whose groups with `orthogonal` = True are stepped by Muon: `beta` is their momentum (Nesterov's), `steps`
    Newton-Schulz iterations; with `unit`, each of their matrices is first scaled to the 2-norm sqrt(out). With
    `depthwise`, each channel's filter is a matrix of its own: it steps by 1 along its momentum."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if group.get("orthogonal"):
                self._turn(group, [weight for weight in group["params"] if weight.grad is not None])
        super().step(closure)

    def _turn(self, group: dict[str, Any], weights: list[nn.Parameter]) -> None:
        """Gradients become the directions that SGD then follows."""
        for weight in weights:
            state = self.state[weight]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(weight)
            moved = state["momentum_buffer"]
            moved.mul_(group["beta"]).add_(weight.grad)
            if group["unit"]:
                weight.copy_(each_unit(weight) if group.get("depthwise") else _unit(weight))
            assert weight.grad is not None
            weight.grad.add_(moved, alpha=group["beta"])
        gradients: list[Tensor] = [weight.grad for weight in weights]  # type: ignore[misc]
        turned = [each_unit(g) for g in gradients] if group.get("depthwise") else orthogonal(gradients, group["steps"])
        for weight, update in zip(weights, turned, strict=True):
            weight.grad = update


def _unit(weight: Tensor) -> Tensor:
    rows = weight.flatten(1).any(1).sum().to(weight.dtype)  # those that padding has added are zero
    return weight * (rows.sqrt() / weight.norm().clamp_min(1e-12))


def each_unit(filters: Tensor) -> Tensor:
    """[channels, 1, k, k], each channel's at norm 1."""
    return filters / torch.linalg.vector_norm(filters, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)


def orthogonal(gradients: list[Tensor], steps: int) -> list[Tensor]:
    """Each of `gradients`, flattened to [out, in], with all singular values near 1 (0.7 to 1.2 after 5 steps); those of
    one shape together. In bfloat16 on CUDA, float32 elsewhere at least."""
    shapes: dict[torch.Size, list[int]] = defaultdict(list)
    for i, gradient in enumerate(gradients):
        shapes[gradient.shape].append(i)
    turned = list(gradients)
    for shape, members in shapes.items():
        stacked = newton_schulz(torch.stack([gradients[i].reshape(shape[0], -1) for i in members]), steps)
        for i, update in zip(members, stacked, strict=True):
            turned[i] = torch.empty_like(gradients[i]).copy_(update.view(shape))
    return turned


def newton_schulz(matrices: Tensor, steps: int) -> Tensor:
    """[n, out, in], each towards the nearest orthogonal matrix by `steps` of a quintic iteration."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + torch.baddbmm(b * square, square, square, alpha=c) @ x
    return (x.mT if tall else x).to(matrices.dtype)
