"""The training loop that everybody writes first, and the closed formula of the averaged weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def train(
    model: nn.Module,
    epochs: list[list[tuple[Tensor, Tensor]]],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    smoothing: float = 0.0,
) -> tuple[list[tuple[float, float]], list[dict[str, Any]]]:
    """Mean loss and accuracy of each epoch, and the state_dict after each step. The scheduler moves once an epoch."""
    criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
    means, history = [], []
    for batches in epochs:
        model.train()
        total_loss, correct, total = 0.0, 0, 0
        for images, labels in batches:
            optimizer.zero_grad()
            outputs = model(images)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(labels)
            correct += int((outputs.argmax(1) == labels).sum())
            total += len(labels)
            history.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        if scheduler:
            scheduler.step()
        means.append((total_loss / total, correct / total))
    return means, history


def averaged(history: list[Tensor], decay: float) -> Tensor:
    """sum_i d^(t-i) w_i / sum_i d^(t-i), term by term."""
    last = len(history) - 1
    shares = [decay ** (last - i) for i in range(len(history))]
    total = torch.zeros_like(history[0])
    for share, weight in zip(shares, history, strict=True):
        total += share * weight
    return total / sum(shares)
