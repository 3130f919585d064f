"""Deterministic whole-batch image operations: one strength an image, no randomness here.

Every function takes uint8 images [n, C, H, W] and per-image strengths [n], and returns new uint8 images of the
same shape. The numbers are drawn in `pipeline`, so that each operation can be compared with its plain twin.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels [n, C, H, W] at `rows` [n, H] x `columns` [n, W] of each image: one gather for the whole batch."""
    n, c, h, w = images.shape
    flat = (rows.unsqueeze(2) * w + columns.unsqueeze(1)).view(n, 1, h * w)
    return images.reshape(n, c, h * w).gather(2, flat.expand(n, c, h * w)).view(n, c, h, w)


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`torch.where` on uint8 in arithmetic, which a CPU vectorises: about five times as fast."""
    return yes * mask + no * ~mask


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left to right where `mirrored` (bool [n])."""
    return _where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def crop(images: Tensor, down: Tensor, right: Tensor, mode: str = "zero") -> Tensor:
    """Move the window by `down`, `right` pixels (int64 [n]) over an image padded with zeros or its reflection."""
    h, w = images.shape[2:]
    rows = torch.arange(h, device=images.device) + down.unsqueeze(1)
    columns = torch.arange(w, device=images.device) + right.unsqueeze(1)
    if mode == "reflect":
        return _take(images, _reflect(rows, h), _reflect(columns, w))
    inside = ((rows >= 0) & (rows < h)).unsqueeze(2) & ((columns >= 0) & (columns < w)).unsqueeze(1)
    return _take(images, rows.clamp(0, h - 1), columns.clamp(0, w - 1)) * inside.unsqueeze(1)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices folded back into [0, size), the border pixel not repeated (numpy's and torch's `reflect`)."""
    return (size - 1) - (index.abs() - (size - 1)).abs()


def cutout(images: Tensor, top: Tensor, left: Tensor, size: int, fill: Tensor) -> Tensor:
    """Fill a `size` x `size` square with its corner at `top`, `left` (int64 [n]; parts outside are lost).

    `fill` is uint8 [C]. Source: DeVries & Taylor 2017, arXiv 1708.04552.
    """
    h, w = images.shape[2:]
    rows = torch.arange(h, device=images.device) - top.unsqueeze(1)
    columns = torch.arange(w, device=images.device) - left.unsqueeze(1)
    hole = ((rows >= 0) & (rows < size)).unsqueeze(2) & ((columns >= 0) & (columns < size)).unsqueeze(1)
    return _where(hole.unsqueeze(1), fill.view(1, -1, 1, 1), images)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """float32 (images / 255 - mean) / std, channels last; `mean` and `std` are float32 [C] in units of 0..1."""
    scale = (1 / (255 * std)).view(1, -1, 1, 1)
    shift = (-mean / std).view(1, -1, 1, 1)
    # the arithmetic first: with channels last it would run in vectors of C numbers, three times as slow on a CPU
    return images.float().mul_(scale).add_(shift).contiguous(memory_format=torch.channels_last)
