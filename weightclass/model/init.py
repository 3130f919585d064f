"""First weights as a function of (seed, parameter name): no generator, so adding a layer leaves the others' draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from weightclass import seeding


def normal(key: int, count: int) -> Tensor:
    """float32 [count] standard normals on the CPU: Box-Muller in float64 on the counter hash (|x| < 5.8)."""
    radius, angle = seeding.uniform(key, torch.arange(count), draws=2).double()
    return (torch.sqrt(-2 * torch.log1p(-radius)) * torch.cos(2 * math.pi * angle)).float()


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Fill every parameter and buffer of a CPU `model` in place.

    Convolutions and linear layers: Kaiming-normal, fan-out, gain of ReLU (He et al. 2015; what the paper ran), biases
    zero. Batch norm: identity, running mean 0 and variance 1. Raises TypeError for a layer it has no rule for.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            weight = module.weight
            fan_out = weight[:, 0].numel()  # channels x kernel area
            draws = normal(seeding.key(seed, f"init/{name}.weight"), weight.numel())
            weight.copy_(draws.view_as(weight) * math.sqrt(2 / fan_out))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"no rule to initialise {name}, a {type(module).__name__}")
