"""Optimizers as recipe tables, built on torch.optim: which parameters decay is our only addition."""

from __future__ import annotations

from typing import Annotated

import torch
from msgspec import Meta
from torch import nn

from weightclass.config import Table

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


Optimizer = SGD | Adadelta | AdamW


def build(config: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The torch optimizer over `model`'s parameters: weights (2-D and up) decay, norms and biases as the key says."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
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
