"""Slow plain twins of weightclass.augment.colour: one image [C, H, W] at a time, by Pillow where it can do it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps


def by_pillow(work: Callable[[Image.Image], Image.Image], image: np.ndarray) -> np.ndarray:
    """As RGB or L; with another number of channels, each channel on its own."""
    if len(image) == 3:
        return np.asarray(work(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))))).transpose(2, 0, 1)
    return np.stack([np.asarray(work(Image.fromarray(channel))) for channel in image])


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return by_pillow(lambda picture: ImageEnhance.Brightness(picture).enhance(factor), image)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    return by_pillow(lambda picture: ImageEnhance.Contrast(picture).enhance(factor), image)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    return by_pillow(lambda picture: ImageEnhance.Color(picture).enhance(factor), image)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    return by_pillow(lambda picture: ImageEnhance.Sharpness(picture).enhance(factor), image)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Pillow 13 refuses 0 bits, whose mask leaves black."""
    return by_pillow(lambda picture: ImageOps.posterize(picture, bits), image) if bits else image * 0


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    return by_pillow(lambda picture: ImageOps.solarize(picture, threshold), image)  # type: ignore[arg-type]


def invert(image: np.ndarray) -> np.ndarray:
    return by_pillow(ImageOps.invert, image)


def autocontrast(image: np.ndarray) -> np.ndarray:
    return by_pillow(ImageOps.autocontrast, image)


def equalize(image: np.ndarray) -> np.ndarray:
    return by_pillow(ImageOps.equalize, image)


def grey(image: np.ndarray) -> np.ndarray:
    return by_pillow(lambda picture: picture.convert("L").convert(picture.mode), image)[:1]


def smooth(image: np.ndarray) -> np.ndarray:
    return by_pillow(lambda picture: picture.filter(ImageFilter.SMOOTH), image)


def blur(image: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    """The whole two-dimensional kernel in float64, not yet rounded."""
    c, h, w = image.shape
    padded = np.pad(image.astype(np.float64), ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    total, blurred = 0.0, np.zeros((c, h, w))
    for down in range(2 * radius + 1):
        for right in range(2 * radius + 1):
            square = (down - radius) ** 2 + (right - radius) ** 2
            weight = np.exp(-square / (2 * sigma**2)) if sigma else float(square == 0)
            total += weight
            blurred += weight * padded[:, down : down + h, right : right + w]
    return blurred / total


def noise(image: np.ndarray, normal: np.ndarray, sigma: float) -> np.ndarray:
    return np.clip(np.rint(image + normal * np.float32(sigma)), 0, 255).astype(np.uint8)
