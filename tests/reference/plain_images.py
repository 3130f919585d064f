"""Slow plain twins of weightclass.data.fit and .images: each pixel's weighted mean, and EXIF's eight ways to turn."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np

UPRIGHT = {
    1: lambda rows: rows,
    2: lambda rows: [row[::-1] for row in rows],
    3: lambda rows: [row[::-1] for row in rows[::-1]],
    4: lambda rows: rows[::-1],
    5: lambda rows: [list(column) for column in zip(*rows, strict=True)],
    6: lambda rows: [list(column) for column in zip(*rows[::-1], strict=True)],
    7: lambda rows: [list(column)[::-1] for column in zip(*rows, strict=True)][::-1],
    8: lambda rows: [list(column) for column in zip(*rows, strict=True)][::-1],
}
"""The picture as it is meant, by the orientation that its rows are stored in (CIPA DC-008, tag 274)."""


def fitted(image: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """float64 [C, h, w], not rounded: the image [C, H, W] made to fit `size` (h, w)."""
    (height, width), (h, w) = image.shape[1:], size
    if fit == "squash":
        return resized(image, h, w)
    if fit == "crop":
        ch, cw = min(height, half_up(Fraction(width * h, w))), min(width, half_up(Fraction(height * w, h)))
        top, left = (height - ch) // 2, (width - cw) // 2
        return resized(image[:, top : top + ch, left : left + cw], h, w)
    scale = min(Fraction(h, height), Fraction(w, width))
    ih, iw = min(h, half_up(height * scale)), min(w, half_up(width * scale))
    canvas = np.zeros((len(image), h, w))
    top, left = (h - ih) // 2, (w - iw) // 2
    canvas[:, top : top + ih, left : left + iw] = resized(image, ih, iw)
    return canvas


def half_up(side: Fraction) -> int:
    return max(1, floor(side + Fraction(1, 2)))


def resized(image: np.ndarray, h: int, w: int) -> np.ndarray:
    """Bilinear, antialiased: each pixel the mean of those below a triangle, one side after the other."""
    height, width = image.shape[1:]
    rows = np.array([triangle(height, h, i) for i in range(h)])
    columns = np.array([triangle(width, w, i) for i in range(w)])
    return np.einsum("iy,cyx,jx->cij", rows, image.astype(np.float64), columns, optimize=True)


def triangle(side: int, goal: int, i: int) -> np.ndarray:
    """The share of each of `side` pixels in the i-th of `goal`; what lies beyond the border is left out."""
    centre, scale = (i + 0.5) * side / goal, max(1.0, side / goal)
    weights = [max(0.0, 1 - abs(x + 0.5 - centre) / scale) for x in range(side)]
    return np.array(weights) / sum(weights)
