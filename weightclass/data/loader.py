"""Batches by indexing: the whole set already lies on the device as uint8, so there is nothing to load.

The order of an epoch is a function of seed and epoch alone, so a run can resume at any step of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from weightclass import seeding
from weightclass.data.dataset import Dataset
from weightclass.errors import UserError


@dataclass
class Batch:
    """Images uint8 [n, C, H, W], labels int64 [n], and slots int64 [n]: each image's place in the global batch."""

    images: Tensor
    labels: Tensor
    slots: Tensor


class Loader:
    """Serves every image once an epoch, in batches of `batch_size`, in an order drawn from (seed, epoch).

    The last batch may be smaller; `drop_last` leaves it out. A last batch of a single image is always left
    out, for batch norm cannot use it; being drawn anew, the image left out differs from epoch to epoch.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, drop_last: bool = False):
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        full, tail = divmod(len(dataset), batch_size)
        self.steps = full + (tail > 1 and not drop_last)
        """Batches per epoch."""
        if not self.steps:
            raise UserError(f"{len(dataset)} images make no batch of {batch_size}: choose a smaller train.batch_size")

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (any whole number) from step `first` on."""
        device = self.dataset.labels.device
        order = seeding.permutation(seeding.key(self.seed, "order", epoch), len(self.dataset), device)
        for indices in order.split(self.batch_size)[first : self.steps]:
            slots = torch.arange(len(indices), device=device)
            yield Batch(self.dataset.images[indices], self.dataset.labels[indices], slots)
