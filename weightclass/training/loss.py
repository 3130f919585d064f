"""The loss: cross-entropy on logits, with label smoothing."""

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
