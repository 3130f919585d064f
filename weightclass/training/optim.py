"""Optimizers as recipe tables, built on torch.optim: which parameters decay, and how fast each kind moves, is ours."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import nn

from weightclass.config import Table
from weightclass.training import muon

Rate = Annotated[float, Meta(gt=0, le=100)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Decay = Annotated[float, Meta(ge=0, le=1)]
Tiny = Annotated[float, Meta(gt=0, le=1)]


class SGD(Table, tag_field="name", tag="sgd"):
    """Recipe table [optimizer] with name = "sgd"."""

    lr: Rate = 0.1
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Decay = 5e-4
    decay_norms: bool = False
    """Weight decay on norms and biases too: on in the paper's recipes, off in ours."""

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true needs momentum above 0")


class Adadelta(Table, tag_field="name", tag="adadelta"):
    """Recipe table [optimizer] with name = "adadelta" (Zeiler 2012)."""

    lr: Rate = 1.0
    rho: Fraction = 0.9
    eps: Tiny = 1e-6
    weight_decay: Decay = 0.0
    decay_norms: bool = False


class AdamW(Table, tag_field="name", tag="adamw"):
    """Recipe table [optimizer] with name = "adamw" (Loshchilov & Hutter 2019)."""

    lr: Rate = 1e-3
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Tiny = 1e-8
    weight_decay: Decay = 0.05
    decay_norms: bool = False


class Muon(Table, tag_field="name", tag="muon"):
    """Recipe table [optimizer] with name = "muon": orthogonal steps for convolutions without a bias (those that a norm
    follows), dense or depthwise, SGD with Nesterov's momentum for all else (Jordan et al. 2024)."""

    lr: Rate = 0.24
    """Of those convolutions."""
    momentum: Fraction = 0.6
    steps: Annotated[int, Meta(ge=1, le=20)] = 3
    """Newton-Schulz iterations."""
    unit: bool = True
    """Scale each such convolution to the 2-norm sqrt(out) before each step, so that `lr` is relative."""
    sgd_lr: Rate = 0.02
    """Of the linear layer and of other weights."""
    sgd_momentum: Fraction = 0.85
    vector_lr: Annotated[float, Meta(gt=0, le=10_000)] = 1.0
    """Of norms and biases."""
    weight_decay: Decay = 0.004
    """Of what SGD steps: its gradient gets weight_decay / rate x the weight, whatever the rate."""
    decay_norms: bool = True


Optimizer = SGD | Adadelta | AdamW | Muon


def build(config: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The torch optimizer over `model`'s parameters: weights (2-D and up) decay, norms and biases as the key says.

    A group's rate is the schedule's times its `scale` (1 where it has none).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    weights, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": config.weight_decay if config.decay_norms else 0.0},
    ]
    fused = weights[0].is_cuda or None  # one kernel for the whole step; elsewhere, and for Adadelta, torch chooses
    match config:
        case SGD():
            momentum, nesterov = config.momentum, config.nesterov
            return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=nesterov, fused=fused)
        case Adadelta():
            return torch.optim.Adadelta(groups, lr=config.lr, rho=config.rho, eps=config.eps)
        case AdamW():
            betas = (config.beta1, config.beta2)
            return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=fused)
        case Muon():
            return muon.Muon(_muon_groups(config, model, groups), lr=config.lr, fused=fused)


def _muon_groups(config: Muon, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The convolutions that Muon takes out of `groups` (weights, vectors), and these with SGD's settings."""
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.bias is None and m.weight.requires_grad]
    dense = {id(conv.weight) for conv in convs if conv.groups == 1}
    depthwise = {id(conv.weight) for conv in convs if conv.groups == conv.in_channels > 1}
    first = {"orthogonal": True, "beta": config.momentum, "steps": config.steps, "unit": config.unit}
    turned = [
        first | {"params": [p for p in groups[0]["params"] if id(p) in chosen], "depthwise": chosen is depthwise}
        for chosen in (dense, depthwise)
        if chosen
    ]
    groups[0]["params"] = [p for p in groups[0]["params"] if id(p) not in dense | depthwise]
    for group, rate in zip(groups, (config.sgd_lr, config.vector_lr), strict=True):
        group |= {"weight_decay": group["weight_decay"] / rate, "scale": rate / config.lr}
        group |= {"momentum": config.sgd_momentum, "nesterov": config.sgd_momentum > 0}
    return [*turned, *groups]
