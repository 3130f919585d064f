"""Slow plain twins of weightclass.augment.mix: one pixel at a time, in exact fractions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from math import isqrt

import numpy as np


def mixup(image: np.ndarray, other: np.ndarray, share: float) -> tuple[np.ndarray, Fraction]:
    """The mixed picture and the share in steps of 2^-16."""
    kept = Fraction(round(Fraction(share) * 65536), 65536)
    pairs = zip(image.flat, other.flat, strict=True)
    levels = [round(kept * int(own) + (1 - kept) * int(its)) for own, its in pairs]
    return np.array(levels, np.uint8).reshape(image.shape), kept


def cutmix(
    image: np.ndarray, other: np.ndarray, top: int, left: int, height: int, width: int
) -> tuple[np.ndarray, Fraction]:
    """The picture with the box of the other one, and the share of its pixels that are still its own."""
    mixed, kept = image.copy(), 0
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            if top <= row < top + height and left <= column < left + width:
                mixed[:, row, column] = other[:, row, column]
            else:
                kept += 1
    return mixed, Fraction(kept, image.shape[1] * image.shape[2])


def targets(own: list[float], its: list[float], share: Fraction) -> list[float]:
    return [float(share * Fraction(a) + (1 - share) * Fraction(b)) for a, b in zip(own, its, strict=True)]


def box(share: Fraction, row: int, column: int, height: int, width: int) -> tuple[int, int, int, int]:
    """`rand_bbox` of the authors' code, their int(size * sqrt(1 - share)) in whole numbers."""

    def ends(centre: int, size: int) -> tuple[int, int]:
        square = (1 - share) * size**2
        cut = isqrt(square.numerator // square.denominator)
        low, high = (min(max(edge, 0), size) for edge in (centre - cut // 2, centre + cut // 2))
        return low, high - low

    (top, rows), (left, columns) = ends(row, height), ends(column, width)
    return top, left, rows, columns


def partners(slots: list[int]) -> list[int]:
    """Pairs are neighbours here, the even slot first; whoever is in none is alone."""
    found = list(range(len(slots)))
    for place, pair in enumerate(pairwise(slots)):
        if pair[0] % 2 == 0 and pair[1] == pair[0] + 1:
            found[place], found[place + 1] = place + 1, place
    return found


def gap(values: np.ndarray, cdf: Callable[[float], float], points: np.ndarray) -> float:
    """Kolmogorov and Smirnov's: the widest gap at `points` between the distribution of `values` and `cdf`."""
    return max(abs(float(np.mean(values <= point)) - cdf(point)) for point in points)
