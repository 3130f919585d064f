from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from weightclass.training.loss import cross_entropy


def logits(n: int = 6, classes: int = 4) -> Tensor:
    return 3 * torch.sin(torch.arange(n * classes, dtype=torch.float64) ** 2).view(n, classes)


def by_hand(logits: Tensor, labels: list[int], smoothing: float) -> float:
    """-sum_c q_c log p_c with q = (1 - s) one-hot + s / classes, in plain floats."""
    losses = []
    for row, label in zip(logits.tolist(), labels, strict=True):
        log_sum = math.log(sum(math.exp(x) for x in row))
        target = [smoothing / len(row) + (1 - smoothing) * (c == label) for c in range(len(row))]
        losses.append(-sum(q * (x - log_sum) for q, x in zip(target, row, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_equals_the_formula(smoothing: float) -> None:
    labels = [0, 3, 1, 1, 2, 0]
    ours = cross_entropy(logits(), torch.tensor(labels), smoothing).item()
    assert ours == pytest.approx(by_hand(logits(), labels, smoothing), rel=1e-12)


def test_probabilities_are_labels_too() -> None:
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    one_hot = torch.nn.functional.one_hot(labels, 4).double()
    torch.testing.assert_close(cross_entropy(logits(), one_hot, 0.1), cross_entropy(logits(), labels, 0.1))


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_is_computed_in_float32_at_least(given: torch.dtype, computed: torch.dtype) -> None:
    low = logits().to(given)
    ours = cross_entropy(low, torch.zeros(6, dtype=torch.int64))
    assert ours.dtype == computed
    assert torch.equal(ours, cross_entropy(low.to(computed), torch.zeros(6, dtype=torch.int64)))
