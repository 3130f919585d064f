"""Slow plain twins of weightclass.augment.ops: one image, one channel at a time, by Pillow and numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageOps


def _by_channel(image: np.ndarray, edit: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """`edit` done to every channel of uint8 `image` [C, H, W] as a grey picture."""
    return np.stack([np.asarray(edit(Image.fromarray(channel.copy()))) for channel in image])


def flip(image: np.ndarray, mirrored: bool) -> np.ndarray:
    return _by_channel(image, ImageOps.mirror) if mirrored else image


def crop(image: np.ndarray, down: int, right: int, mode: str) -> np.ndarray:
    _, h, w = image.shape
    if mode == "reflect":
        wide = np.pad(image, ((0, 0), (h - 1, h - 1), (w - 1, w - 1)), mode="reflect")
        return wide[:, h - 1 + down :, w - 1 + right :][:, :h, :w]
    return _by_channel(image, lambda grey: grey.crop((right, down, right + w, down + h)))  # zeros outside


def erase(image: np.ndarray, top: int, left: int, height: int, width: int, fill: list[int]) -> np.ndarray:
    filled = image.copy()
    if height and width:
        for channel, value in enumerate(fill):
            grey = Image.fromarray(image[channel].copy())
            ImageDraw.Draw(grey).rectangle((left, top, left + width - 1, top + height - 1), fill=value)
            filled[channel] = np.asarray(grey)
    return filled


def normalise(image: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    """float64, in the order of the textbook."""
    channels = [(image[c].astype(np.float64) / 255 - mean[c]) / std[c] for c in range(len(mean))]
    return np.stack(channels)
