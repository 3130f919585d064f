"""Corruptions of one image at a time, as `make_cifar_c.py` and ImageMagick write them down; the draws are handed in."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage


def glass_shuffle(image: np.ndarray, up: np.ndarray, left: np.ndarray) -> np.ndarray:
    """One round on [H, W, C], pixel after pixel from the last to the first; `up` and `left` [H, W] are 0 or 1. The swap
    is theirs: of views, so that the pixel that is written first is read again."""
    x = image.copy()
    height, width, _ = x.shape
    for h in range(height - 1, 1, -1):
        for w in range(width - 1, 1, -1):
            i, j = h - up[h, w], w - left[h, w]
            x[h, w], x[i, j] = x[i, j], x[h, w]
    return x


def motion(image: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """MagickMotionBlurImage of [H, W, C]: a kernel of 2 radius + 1 along a line; outside, the edge's pixels."""
    height, width, _ = image.shape
    kernel = [math.exp(-i * i / (2 * sigma * sigma)) for i in range(2 * radius + 1)]
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            for i, weight in enumerate(kernel):
                right = math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
                down = math.ceil(i * math.sin(math.radians(degrees)) - 0.5)
                place = min(max(y + down, 0), height - 1), min(max(x + right, 0), width - 1)
                out[y, x] += image[place] * weight / sum(kernel)
    return out


def plasma(bumps: np.ndarray, decay: float) -> np.ndarray:
    """Diamonds and squares cell by cell; `bumps` [size, size] in -1..1 is what each point is raised by."""
    size = len(bumps)
    land, step, strength = np.zeros((size, size)), size, 1.0
    while step > 1:
        half = step // 2
        for y in range(0, size, step):
            for x in range(0, size, step):
                corners = [land[y, x], land[(y + step) % size, x], land[y, (x + step) % size]]
                corners.append(land[(y + step) % size, (x + step) % size])
                land[y + half, x + half] = sum(corners) / 4 + strength * bumps[y + half, x + half]
        for y in range(0, size, half):
            for x in range((y + half) % step, size, step):
                around = [
                    ((y + half) % size, x),
                    ((y - half) % size, x),
                    (y, (x + half) % size),
                    (y, (x - half) % size),
                ]
                land[y, x] = sum(land[place] for place in around) / 4 + strength * bumps[y, x]
        step, strength = half, strength / decay
    return (land - land.min()) / (land.max() - land.min())


def zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """clipped_zoom of a square [H, H, C]."""
    side = len(image)
    kept = math.ceil(side / factor)
    top = (side - kept) // 2
    image = ndimage.zoom(image[top : top + kept, top : top + kept], (factor, factor, 1), order=1)
    top = (len(image) - side) // 2
    return image[top : top + side, top : top + side]


def poisson(u: float, rate: float) -> int:
    """The least count whose share of Poisson's distribution, with all below it, is above `u`."""
    count, term = 0, math.exp(-rate)
    total = term
    while total <= u:
        count += 1
        term *= rate / count
        total += term
    return count


def warp(image: np.ndarray, points: np.ndarray, field: np.ndarray) -> np.ndarray:
    """[H, W, C] with three of its points (x, y) at `points` [3, 2], then pixels from `field` [2, H, W] away."""
    height, width, _ = image.shape
    reach = min(height, width) // 3
    before = [(width // 2 + reach * a, height // 2 + reach * b) for a, b in ((1, 1), (1, -1), (-1, -1))]
    matrix = np.linalg.solve(np.column_stack([points, np.ones(3)]), np.array(before, float))
    here = np.stack(np.meshgrid(np.arange(width), np.arange(height)))
    there = np.einsum("ic,ihw->chw", matrix, np.concatenate([here, np.ones((1, height, width))]))
    for x, y in (there, here + field):
        image = np.stack(
            [ndimage.map_coordinates(one, (y, x), order=1, mode="reflect") for one in image.T.swapaxes(1, 2)], 2
        )
    return image
