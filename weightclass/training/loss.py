"""The loss: cross-entropy on logits, with label smoothing; with teachers, their answers too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats of logits [n, classes] against labels int64 [n] (or probabilities [n, classes]).

    Computed in float32 at least, whatever the network ran in. `smoothing`: Szegedy et al. 2016, section 7.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def distilled(loss: Tensor, logits: Tensor, teacher: Tensor, temperature: float, weight: float) -> Tensor:
    """(1 - weight) `loss` + weight T^2 KL(teacher || student), the mean over images [n, classes] of logits softened by
    T, whose square keeps the gradient's size at any T. Source: Hinton et al. 2015, section 2."""
    student, soft = logits.to(loss.dtype) / temperature, teacher.to(loss.dtype) / temperature
    apart = F.kl_div(student.log_softmax(1), soft.log_softmax(1), reduction="batchmean", log_target=True)
    return (1 - weight) * loss + weight * temperature**2 * apart
