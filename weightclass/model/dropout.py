"""Dropout whose mask is a function of (key, image), so that micro-batches, ranks and resumed runs drop the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightclass import seeding


class HashDropout(nn.Module):
    """Zeroes each of `features` with probability `p` in training and scales the rest by 1 / (1 - p).

    The mask is drawn in `place`, outside `forward`: a compiled forward sees one more tensor, not a new key a step.
    """

    def __init__(self, p: float, features: int) -> None:
        super().__init__()
        self.p, self.features = p, features
        self.mask: Tensor | None = None
        self._masks: dict[int, Tensor] = {}

    def place(self, key: int, slots: Tensor) -> None:
        """Draw the mask of the next training passes: `key` is the step's, int64 `slots` [n] the images' places in the
        global batch, on the device of the features. Call it before every batch."""
        draws = seeding.uniform(key, slots, draws=self.features).T
        # Always in the same memory for as many images: a CUDA graph reads it where it lay when it was recorded.
        mask = self._masks.setdefault(len(slots), torch.empty_like(draws))
        self.mask = mask.copy_((draws >= self.p) / (1 - self.p))

    def forward(self, features: Tensor) -> Tensor:
        """[n, features] to the same shape. Raises RuntimeError in training without a matching `place`."""
        if not self.training:
            return features
        if self.mask is None or self.mask.shape != features.shape:
            raise RuntimeError("dropout has no mask for this batch: call place(key, slots) before a training pass")
        return features * self.mask.to(features.dtype)
