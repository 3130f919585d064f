"""The scorecard's numbers by loops over Python floats: slow, and plain to see that they are right."""

from __future__ import annotations

import math


def largest(row: list[float]) -> int:
    """The index of the first largest value."""
    best = 0
    for i, value in enumerate(row):
        if value > row[best]:
            best = i
    return best


def confusion(logits: list[list[float]], labels: list[int], classes: int) -> list[list[int]]:
    counts = [[0] * classes for _ in range(classes)]
    for row, label in zip(logits, labels, strict=True):
        counts[label][largest(row)] += 1
    return counts


def nll(logits: list[list[float]], labels: list[int]) -> float:
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        top = max(row)
        total += math.log(math.fsum(math.exp(value - top) for value in row)) + top - row[label]
    return total / len(labels)


def wilson(correct: int, n: int, z: float) -> tuple[float, float]:
    """The two shares p that solve (p - correct/n)^2 = z^2 p (1 - p) / n, found by bisection from correct/n outwards."""
    share = correct / n

    def outside(p: float) -> bool:
        return (p - share) ** 2 > z * z * p * (1 - p) / n

    ends = []
    for far in (0.0, 1.0):
        inner, outer = share, far
        for _ in range(80):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if outside(middle) else (middle, outer)
        ends.append(inner)
    return ends[0], ends[1]
