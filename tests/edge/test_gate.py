"""The gate counts what a plain loop counts, and lets through what it should."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightclass.edge.gate import GATES, Agreement, Gate, compare
from weightclass.evaluation.metrics import Interval


def logits(seed: int, n: int = 200) -> torch.Tensor:
    return torch.randn(n, 10, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 60), st.integers(0, 10**6), st.floats(0, 2))
def test_the_figures_are_those_of_a_plain_loop(n: int, seed: int, noise: float) -> None:
    reference, labels = logits(seed, n), torch.randint(10, (n,), generator=torch.Generator().manual_seed(seed))
    said = reference + noise * logits(seed + 1, n)
    found = compare(reference, said, labels)
    differences = sorted(abs(a - b) for a, b in zip(said.flatten().tolist(), reference.flatten().tolist(), strict=True))
    rows = list(zip(said.tolist(), reference.tolist(), labels.tolist(), strict=True))
    same = sum(a.index(max(a)) == b.index(max(b)) for a, b, _ in rows)
    change = sum((a.index(max(a)) == label) - (b.index(max(b)) == label) for a, b, label in rows)
    assert found.n == n
    assert found.agreement == pytest.approx(same / n)
    assert found.accuracy_change == pytest.approx(change / n)
    assert found.mean_difference == pytest.approx(sum(differences) / len(differences), abs=1e-6)
    assert found.p99_difference == pytest.approx(differences[math.ceil(0.99 * len(differences)) - 1], abs=1e-6)
    assert found.interval.lo <= found.interval.hi


def test_a_file_that_says_the_same_passes_every_gate() -> None:
    same = compare(logits(0), logits(0), torch.zeros(200, dtype=torch.int64))
    assert (same.agreement, same.mean_difference, same.accuracy_change) == (1, 0, 0)
    assert same.interval.lo < 0 < same.interval.hi  # 200 images cannot say more
    assert [gate.refusal(same) for gate in GATES.values()] == ["", "", ""]


def test_the_interval_covers_the_change_as_often_as_it_says() -> None:
    """Pairs drawn with known shares: the true change lies in the interval in about 95 of 100 draws."""
    shares, covered = torch.tensor([0.85, 0.02, 0.05, 0.08]), 0  # both right, gained, lost, both wrong
    truth = 0.02 - 0.05
    for seed in range(300):
        drawn = torch.multinomial(shares, 400, True, generator=torch.Generator().manual_seed(seed))
        right, before = (drawn == 0) | (drawn == 1), (drawn == 0) | (drawn == 2)
        said, reference = (torch.stack([1.0 * ~good, 1.0 * good], 1) for good in (right, before))
        interval = compare(reference, said, torch.ones(400, dtype=torch.int64)).interval
        covered += interval.lo <= truth <= interval.hi
    assert 0.92 <= covered / 300 <= 0.98


def agreement(**changed: object) -> Agreement:
    good = {"n": 1000, "agreement": 1.0, "mean_difference": 0.01, "p99_difference": 0.1, "spread": 3.0}
    return Agreement(**good | {"accuracy_change": 0.0, "interval": Interval(-0.001, 0.001)} | changed)  # type: ignore[arg-type]


GATE = Gate(agreement=0.98, accuracy_loss=0.005, difference=1.0)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"agreement": 0.98}, ""),
        ({"agreement": 0.9799}, "top-1 agreement 97.99%, wanted 98.00%"),
        ({"accuracy_change": -0.02, "interval": Interval(-0.03, -0.01)}, "accuracy -2.00 points, 0.50 may be lost"),
        ({"accuracy_change": -0.02, "interval": Interval(-0.05, 0.01)}, ""),
        ({"accuracy_change": -0.004, "interval": Interval(-0.005, -0.003)}, ""),
        ({"p99_difference": 3.1}, "p99 logit difference 3.1, at most 3"),
        ({"mean_difference": math.nan, "agreement": 0.1}, "some logits are no numbers"),
    ],
)
def test_what_is_refused_and_why(changed: dict[str, object], why: str) -> None:
    assert GATE.refusal(agreement(**changed)) == why


def test_nan_logits_are_seen() -> None:
    said = logits(0)
    said[3] = math.nan
    assert "no numbers" in GATE.refusal(compare(logits(0), said, torch.zeros(200, dtype=torch.int64)))
