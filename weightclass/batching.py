"""A batch, and how it is cut: into micro-batches as into groups of batch norm, or the two would not agree."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Batch:
    """Images [n, C, H, W], uint8 or normalised float32, and labels int64 [n] or, where they are mixed, float32
    [n, classes]; slots int64 [n] are each image's place in the global batch, indices int64 [n] in the data set."""

    images: Tensor
    labels: Tensor
    slots: Tensor
    indices: Tensor


def cuts(images: int, size: int) -> list[int]:
    """Sizes of consecutive pieces of at most `size` (0: one piece). A last image alone joins the piece before it, for
    batch norm cannot use one image."""
    full, rest = divmod(images, size or images)
    if rest == 1 and full:
        return [size] * (full - 1) + [size + 1]
    return [size or images] * full + [rest] * (rest > 0)
