"""Slow plain twins of weightclass.data.images: where in the source each pixel lies, and EXIF's eight ways to turn."""

from __future__ import annotations

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


def places(size: tuple[int, int], wanted: tuple[int, int], fit: str) -> np.ndarray:
    """float [h, w, 2]: the point (y, x) of an image of `size` (H, W) at each pixel's middle, NaN on black."""
    scales = [side / goal for side, goal in zip(size, wanted, strict=True)]
    if fit == "crop":
        scales = [min(scales)] * 2
    inner = list(wanted)
    if fit == "pad":
        inner = [max(1, round(side / max(scales))) for side in size]
        scales = [side / goal for side, goal in zip(size, inner, strict=True)]
    found = np.full((*wanted, 2), np.nan)
    for y in range(wanted[0]):
        for x in range(wanted[1]):
            point = []
            for place, side, goal, scale, part in zip((y, x), size, wanted, scales, inner, strict=True):
                border = (goal - part) // 2
                inside = border <= place < border + part
                start = (side - part * scale) / 2  # what crop cuts off
                point.append(start + (place - border + 0.5) * scale if inside else np.nan)
            found[y, x] = point if not np.isnan(point).any() else np.nan
    return found
