"""Slow plain twins of weightclass.augment.warps: one image [C, H, W] at a time, by Pillow as torchvision calls it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tests.reference import plain_policies
from tests.reference.plain_colour import by_pillow


def shear_x(image: np.ndarray, amount: float, interpolation: str = "nearest") -> np.ndarray:
    return by_pillow(lambda picture: plain_policies.apply_op(picture, "ShearX", amount, interpolation), image)


def shear_y(image: np.ndarray, amount: float, interpolation: str = "nearest") -> np.ndarray:
    return by_pillow(lambda picture: plain_policies.apply_op(picture, "ShearY", amount, interpolation), image)


def rotation(image: np.ndarray, degrees: float, interpolation: str = "nearest") -> np.ndarray:
    return by_pillow(lambda picture: plain_policies.apply_op(picture, "Rotate", degrees, interpolation), image)


def translation(image: np.ndarray, right: float, down: float) -> np.ndarray:
    moved = by_pillow(lambda picture: plain_policies.apply_op(picture, "TranslateX", right), image)
    return by_pillow(lambda picture: plain_policies.apply_op(picture, "TranslateY", down), moved)


def warp(image: np.ndarray, matrix: Sequence[float], interpolation: str = "nearest") -> np.ndarray:
    resampling = plain_policies.RESAMPLING[interpolation]
    return by_pillow(lambda picture: picture.transform(picture.size, Image.Transform.AFFINE, matrix, resampling), image)


def perspective(image: np.ndarray, corners: Sequence[Sequence[int]]) -> np.ndarray:
    return by_pillow(lambda picture: plain_policies.perspective(picture, corners), image)


def on_the_edge(coefficients: Sequence[float], height: int, width: int) -> np.ndarray:
    """bool [H, W]: pixels whose centre comes from the edge of the image itself, but for float32's rounding."""
    a, b, c, d, e, f, g, h = np.asarray(coefficients, np.float64)
    y, x = np.mgrid[:height, :width] + 0.5
    with np.errstate(all="ignore"):
        column, row = (a * x + b * y + c) / (g * x + h * y + 1), (d * x + e * y + f) / (g * x + h * y + 1)
    gaps = [np.abs(place - side) for place, side in ((column, 0), (column, width), (row, 0), (row, height))]
    return np.min(gaps, 0) < 1e-5 * max(height, width)
