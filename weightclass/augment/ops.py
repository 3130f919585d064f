"""Deterministic whole-batch image operations: one strength an image, no randomness here.

Every function takes uint8 images [n, C, H, W] and per-image strengths [n], and returns new uint8 images of the
same shape. The numbers are drawn in `operations`, so that each operation can be compared with its plain twin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Operation = Callable[..., Tensor]


def each_its_own(kind: Tensor, operations: Sequence[Operation | None], images: Tensor, *strengths: Tensor) -> Tensor:
    """Each of `images` through `operations[kind](images, *strengths)`; None leaves them. `kind` is int64 [n], all else
    [n, ...].

    A CPU sorts the images by kind, so that each operation computes its own only; elsewhere each computes all, and
    nobody waits to hear how many there are.
    """
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        changed = images
        for number, operation in enumerate(operations):
            if operation:
                mine = (kind == number).view(-1, 1, 1, 1)
                changed = torch.where(mine, operation(images, *strengths), changed)
        return changed
    order, counts = kind.argsort(stable=True), kind.bincount(minlength=len(operations)).tolist()
    if len(images) in counts:
        operation = operations[counts.index(len(images))]
        return operation(images, *strengths) if operation else images
    parts = zip(*(whole.index_select(0, order).split(counts) for whole in (images, *strengths)), strict=True)
    done = [
        operation(*part) if operation and len(part[0]) else part[0]
        for operation, part in zip(operations, parts, strict=True)
    ]
    return torch.cat(done).index_select(0, order.argsort())


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`torch.where` on uint8 in arithmetic, which a CPU vectorises: about five times as fast."""
    return yes * mask + no * ~mask


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left to right where `mirrored` (bool [n])."""
    return _where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def crop(images: Tensor, down: Tensor, right: Tensor, padding: int, mode: str = "zero") -> Tensor:
    """Move the window by `down`, `right` pixels (int64 [n], up to `padding`) over an image padded with zeros or its
    reflection."""
    n, c, h, w = images.shape
    padded = _reflected(images, padding) if mode == "reflect" else F.pad(images, [padding] * 4)
    high, wide = padded.shape[2:]
    corners = (torch.arange(n, device=images.device) * c * high + down + padding) * wide + right + padding
    rows = torch.arange(c * high, device=images.device).view(c, high)[:, :h] * wide
    # a row of the window is w bytes in a row, wherever they begin: copied whole, several times as fast as pixels
    starts = corners.view(n, 1, 1) + rows
    return padded.contiguous().view(-1).unfold(0, w, 1).index_select(0, starts.flatten()).view(n, c, h, w)


def _reflected(images: Tensor, padding: int) -> Tensor:
    """Framed by their own mirror images, the border pixels not repeated; by flips, which any device can do to bytes."""
    for axis in (2, 3):
        size = images.shape[axis]
        before, after = images.narrow(axis, 1, padding), images.narrow(axis, size - 1 - padding, padding)
        images = torch.cat([before.flip(axis), images, after.flip(axis)], axis)
    return images


def box(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """bool [n, 1, H, W]: inside of boxes with their corners at `top`, `left` (int64 [n]; parts outside are lost)."""
    rows = torch.arange(images.shape[2], device=images.device) - top.unsqueeze(1)
    columns = torch.arange(images.shape[3], device=images.device) - left.unsqueeze(1)
    high, wide = (rows >= 0) & (rows < height.unsqueeze(1)), (columns >= 0) & (columns < width.unsqueeze(1))
    return (high.unsqueeze(2) & wide.unsqueeze(1)).unsqueeze(1)


def erase(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, fill: Tensor) -> Tensor:
    """Fill a `box` with the colour `fill` (uint8 [C]). Sources: DeVries & Taylor 2017, arXiv 1708.04552 (squares);
    Zhong et al. 2020, arXiv 1708.04896."""
    return _where(box(images, top, left, height, width), fill.view(1, -1, 1, 1), images)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """float32 (images / 255 - mean) / std, channels last; `mean` and `std` are float32 [C] in units of 0..1."""
    scale = (1 / (255 * std)).view(1, -1, 1, 1)
    shift = (-mean / std).view(1, -1, 1, 1)
    # the arithmetic first: with channels last it would run in vectors of C numbers, three times as slow on a CPU
    return images.float().mul_(scale).add_(shift).contiguous(memory_format=torch.channels_last)
