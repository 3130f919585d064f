"""Made-up images, and a PNG read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] of a PNG; its outermost pixels must be white, or something was cut off."""
    from PIL import Image

    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    border = np.ones(pixels.shape[:2], bool)
    border[2:-2, 2:-2] = False
    assert (pixels[border] == 255).all(), "something touches the border"
    assert (pixels < 255).any(), "an empty picture"
    return pixels


def ramp(count: int, channels: int, tall: int, wide: int) -> Tensor:
    size = count * channels * tall * wide
    return (torch.arange(size) * 37 % 256).to(torch.uint8).reshape(count, channels, tall, wide)


class Lazy:
    """Images as `data.store.Stored` hands them out; it notes how many rows were read at a time."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.reads = images, list[int]()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | list[int] | slice) -> Tensor:
        assert isinstance(index, slice | list) or index.dtype == torch.int64
        rows = self.images[index]
        self.reads.append(len(rows))
        return rows


def natural(count: int, height: int, width: int) -> Tensor:
    """uint8 [count, 3, height, width]: smooth colours with noise on top, and some flat, dark, bright or two-level."""
    random = np.random.default_rng(0)
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    images = np.empty((count, 3, height, width))
    for image in images.reshape(-1, height, width):
        a, b, c, d = random.normal(0, 60, 4)
        image[:] = 128 + a * rows + b * columns + c * np.sin(7 * rows * columns + d) + random.normal(0, 12, image.shape)
    images[1::16], images[2::16] = images[1::16] / 4, 128 + images[2::16] / 2
    images[3::16], images[4::16] = 90, np.where(images[4::16] > 128, 200, 30)
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8))
