"""How a picture of any size gets the network's: defined here and nowhere else, exported graphs repeat it.

Integers say which part goes where, then comes one antialiased bilinear resize in float32. Torch interpolates; numpy
does the rest, since it keeps to the thread it is called in: pictures are decoded in as many as there are cores.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Fit = Literal["crop", "pad", "squash"]
"""Cover the wanted size and cut the centre; fit inside it on black; or ignore the aspect."""

GRAIN = 2**15
"""Values that torch still makes in the calling thread alone."""


def fitted(pixels: Tensor, size: tuple[int, int], fit: Fit) -> Tensor:
    """uint8 [C, h, w] of `pixels` uint8 [C, H, W] on the CPU; an image of `size` (h, w) comes out as it is."""
    image, (height, width), (h, w) = pixels.numpy(), pixels.shape[1:], size
    if (height, width) == size:
        return pixels
    if fit == "pad":
        tall = h * width <= w * height
        inner = (h, _scaled(width, h, height)) if tall else (_scaled(height, w, width), w)
        gaps = (0, h - inner[0], w - inner[1])
        return torch.from_numpy(np.pad(_resized(image, inner), [(gap // 2, gap - gap // 2) for gap in gaps]))
    if fit == "crop":
        ch, cw = min(height, _scaled(width, h, w)), min(width, _scaled(height, w, h))
        top, left = (height - ch) // 2, (width - cw) // 2
        image = image[:, top : top + ch, left : left + cw]
    return torch.from_numpy(_resized(image, size))


def _scaled(side: int, to: int, of: int) -> int:
    """side * to / of, half up, at least 1."""
    return max(1, (2 * side * to + of) // (2 * of))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """F.interpolate(image, size, mode="bilinear", antialias=True) in float32, half to even: uint8 [C, h, w].

    Width, then height, as there, unless that would make more first: 1 x 50,000,000 squashed takes no gigabytes.
    """
    values = image
    for dim in (2, 1) if size[1] <= image.shape[2] else (1, 2):
        turned = values if dim == 2 else np.ascontiguousarray(values.swapaxes(1, 2))
        values = _across(turned, size[dim - 1]).swapaxes(dim, 2)
    return np.rint(values).clip(0, 255).astype(np.uint8, order="C")


def _across(values: np.ndarray, width: int) -> np.ndarray:
    """float32 [C, H, width] of `values` [C, H, W], some rows at a time: no photograph is ever floats as a whole.

    Only across: down one column alone, torch 2.13 repeats the first value.
    """
    if values.shape[2] == width:
        return values
    out = np.empty((*values.shape[:2], width), np.float32)
    rows = max(1, GRAIN // (len(values) * width))
    for top in range(0, out.shape[1], rows):
        part = torch.from_numpy(values[:, top : top + rows].astype(np.float32))[None]
        wanted = F.interpolate(part, (part.shape[2], width), mode="bilinear", antialias=True)
        out[:, top : top + rows] = wanted[0].numpy()
    return out
