from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.reference import plain_distill
from weightclass.training.loss import cross_entropy, distilled


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


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_distillation_equals_torchs_own_criteria(temperature: float, weight: float) -> None:
    labels, teacher = torch.tensor([0, 3, 1, 1, 2, 0]), logits().roll(1, 0)
    ours, theirs = (logits().requires_grad_() for _ in range(2))
    mine = distilled(cross_entropy(ours, labels), ours, teacher, temperature, weight)
    plain = plain_distill.loss(theirs, labels, teacher, temperature, weight)
    torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-12)
    for value in (mine, plain):
        value.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_a_weight_of_nothing_is_the_labels_loss_bit_for_bit() -> None:
    labels, students = torch.tensor([0, 3, 1, 1, 2, 0]), [logits().float().requires_grad_() for _ in range(2)]
    plain = cross_entropy(students[0], labels, 0.1)
    taught = distilled(cross_entropy(students[1], labels, 0.1), students[1], logits().roll(1, 0).half(), 4.0, 0.0)
    plain.backward()
    taught.backward()
    assert torch.equal(taught, plain)
    assert torch.equal(students[0].grad, students[1].grad)  # type: ignore[arg-type]


def test_who_answers_as_the_teacher_has_nothing_to_learn_whatever_is_added_to_all_logits() -> None:
    student = logits().requires_grad_()
    distilled(student.sum() * 0, student, student.detach() - 7, 3.0, 1.0).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-15


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32])
def test_distillation_is_computed_in_float32(given: torch.dtype) -> None:
    low, zeros = logits().to(given), torch.zeros(6, dtype=torch.int64)
    teacher = logits().roll(1, 0).half()
    mine = distilled(cross_entropy(low, zeros), low, teacher, 4.0, 0.5)
    assert mine.dtype == torch.float32
    assert torch.equal(mine, distilled(cross_entropy(low.float(), zeros), low.float(), teacher.float(), 4.0, 0.5))
