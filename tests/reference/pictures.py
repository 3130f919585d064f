"""Made-up images for pictures, and a PNG read back."""

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
