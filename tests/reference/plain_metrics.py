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


def top(k: int, logits: list[list[float]], labels: list[int]) -> float:
    """The share of labels among the first `k` of the classes sorted by logit (the sort is stable)."""
    hits = 0
    for row, label in zip(logits, labels, strict=True):
        hits += label in sorted(range(len(row)), key=lambda i: -row[i])[:k]
    return hits / len(labels)


def class_score(logits: list[list[float]], labels: list[int], label: int) -> tuple[float | None, ...]:
    """Precision, recall and F1 of one class by counting; None where the count below the line is 0."""
    pairs = [(largest(row), true) for row, true in zip(logits, labels, strict=True)]
    hits = sum(said == true == label for said, true in pairs)
    given, n = sum(said == label for said, _ in pairs), sum(true == label for _, true in pairs)
    return hits / given if given else None, hits / n if n else None, 2 * hits / (given + n) if given + n else None


def calibration(logits: list[list[float]], labels: list[int], bins: int) -> list[tuple[int, float, float]]:
    """(images, mean confidence, accuracy) of each bin (i / bins, (i + 1) / bins]; zeros where there is no image."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(logits, labels, strict=True):
        confidence = 1 / math.fsum(math.exp(value - max(row)) for value in row)
        inside = [i for i in range(bins) if i < confidence * bins <= i + 1]
        members[inside[0]].append((confidence, largest(row) == label))
    found = []
    for some in members:
        n = len(some) or 1
        found.append((len(some), math.fsum(sure for sure, _ in some) / n, sum(right for _, right in some) / n))
    return found


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
