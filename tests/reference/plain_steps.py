"""A step of SAM and a training with Lookahead as their papers write them, and BN statistics group by group."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Batches = list[tuple[Tensor, Tensor]]


def clip(gradients: list[Tensor], norm: float, value: float) -> list[Tensor]:
    """Scaled to 2-norm `norm` where they are longer together, or entry by entry cut to +-`value`; 0: neither."""
    if norm:
        length = torch.sqrt(sum(((g**2).sum() for g in gradients), torch.zeros(())))
        gradients = [g * (norm / (length + 1e-6)) for g in gradients] if length > norm else gradients
    return [g.clamp(-value, value) for g in gradients] if value else gradients


def sam_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    rho: float,
    clip_norm: float = 0.0,
    clip_value: float = 0.0,
) -> float:
    """Algorithm 1 of Foret et al. (2021), the second gradient on copies of weights and buffers; the first loss."""
    parameters = dict(model.named_parameters())
    loss = F.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    length = torch.sqrt(sum(((g**2).sum() for g in gradients), torch.zeros(())))
    there = {
        name: (w + rho * g / length if rho else w).detach().requires_grad_()
        for (name, w), g in zip(parameters.items(), gradients, strict=True)
    }
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    worse = F.cross_entropy(functional_call(model, {**there, **buffers}, images), labels)
    steepest = torch.autograd.grad(worse, list(there.values()))
    for parameter, gradient in zip(parameters.values(), clip(list(steepest), clip_norm, clip_value), strict=True):
        parameter.grad = gradient
    optimizer.step()
    return loss.item()


@torch.no_grad()
def pull(slow: list[Tensor], fast: list[Tensor], alpha: float) -> None:
    for theirs, mine in zip(slow, fast, strict=True):
        theirs += alpha * (mine - theirs)
        mine.copy_(theirs)


def lookahead(
    model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer, every: int, alpha: float
) -> tuple[list[Tensor], list[float]]:
    """Algorithm 1 of Zhang et al. (2019): the slow weights at the end, and the loss of each (fast) step."""
    slow, losses = [parameter.detach().clone() for parameter in model.parameters()], []
    for start in range(0, len(batches), every):
        inner = batches[start : start + every]
        losses += [sam_step(model, images, labels, optimizer, rho=0.0) for images, labels in inner]
        if len(inner) == every:
            pull(slow, list(model.parameters()), alpha)
    return slow, losses


def statistics(model: nn.Module, groups: list[Tensor]) -> dict[str, Tensor]:
    """The mean over `groups` of each batch norm's mean and (unbiased) variance, by buffer name."""
    found: dict[str, list[Tensor]] = {}

    def note(name: str, x: Tensor) -> None:
        found.setdefault(f"{name}.running_mean", []).append(x.mean((0, 2, 3)))
        found.setdefault(f"{name}.running_var", []).append(x.transpose(0, 1).flatten(1).var(1))

    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
    model.train()
    with torch.no_grad():
        for group in groups:
            model(group)
    return {name: sum(values[1:], values[0]) / len(values) for name, values in found.items()}
