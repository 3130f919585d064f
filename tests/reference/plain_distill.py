"""Distillation as Hinton et al. (2015) write it: torch's own criteria, image by image where that is plainer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def loss(student: Tensor, labels: Tensor, teacher: Tensor, temperature: float, weight: float) -> Tensor:
    """Of logits [n, classes] of both."""
    soft = nn.Softmax(1)(teacher / temperature)
    apart = nn.KLDivLoss(reduction="batchmean")(nn.LogSoftmax(1)(student / temperature), soft)
    return (1 - weight) * nn.CrossEntropyLoss()(student, labels) + weight * temperature**2 * apart


@torch.no_grad()
def said(networks: list[tuple[nn.Module, tuple[float, ...], tuple[float, ...]]], pixels: Tensor) -> Tensor:
    """Log-probabilities [n, classes] of the geometric mean of the networks' answers to uint8 images, each normalised
    with its network's mean and std."""
    rows = []
    for image in pixels:
        logs = []
        for network, mean, std in networks:
            channels = [(c.float() / 255 - m) / s for c, m, s in zip(image, mean, std, strict=True)]
            logs.append(F.log_softmax(network.eval()(torch.stack(channels)[None])[0], 0))
        mean_log = sum(logs[1:], logs[0]) / len(logs)
        rows.append(mean_log - mean_log.exp().sum().log())
    return torch.stack(rows)
