"""How a batch is cut, into micro-batches as into groups of batch norm: one rule, or the two would not agree."""

from __future__ import annotations


def cuts(images: int, size: int) -> list[int]:
    """Sizes of consecutive pieces of at most `size` (0: one piece). A last image alone joins the piece before it, for
    batch norm cannot use one image."""
    full, rest = divmod(images, size or images)
    if rest == 1 and full:
        return [size] * (full - 1) + [size + 1]
    return [size or images] * full + [rest] * (rest > 0)
