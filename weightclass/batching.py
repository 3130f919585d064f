"""A batch, and how it is cut: into ranks' parts, micro-batches and groups of batch norm, or they would not agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor


@dataclass
class Batch:
    """Images [n, C, H, W], uint8 or normalised float32, and labels int64 [n] or, where they are mixed, float32
    [n, classes]; slots int64 [n] are each image's place in the global batch, indices int64 [n] in the data set."""

    images: Tensor
    labels: Tensor
    slots: Tensor
    indices: Tensor
    total: int = 0
    """Images of the global batch, of which these are one rank's part; 0: these are all."""
    teacher: Tensor | None = None
    """Logits [n, classes] to learn from."""


def cuts(images: int, size: int) -> list[int]:
    """Sizes of consecutive pieces of at most `size` (0: one piece). A last image alone joins the piece before it, for
    batch norm cannot use one image."""
    full, rest = divmod(images, size or images)
    if rest == 1 and full:
        return [size] * (full - 1) + [size + 1]
    return [size or images] * full + [rest] * (rest > 0)


def parts(images: int, group: int, ranks: int) -> list[int]:
    """Sizes of the consecutive parts of a batch that `ranks` compute: whole groups of batch norm (0: any images) and
    whole pairs of mixup. None where these are too few; then each rank computes all of the batch."""
    pieces = cuts(images, math.lcm(group or 1, 2))
    bounds = [len(pieces) * rank // ranks for rank in range(ranks + 1)]
    return [sum(pieces[start:stop]) for start, stop in pairwise(bounds)] if len(pieces) >= ranks else []
