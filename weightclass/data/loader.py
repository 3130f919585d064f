"""Batches by indexing: a set on the device has nothing to load, any other is read one step ahead.

The order of an epoch is a function of seed and epoch alone, so a run can resume at any step of it, and a batch is the
same wherever its images lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from weightclass import seeding
from weightclass.batching import Batch
from weightclass.data.ahead import ahead
from weightclass.data.dataset import Dataset
from weightclass.data.store import Stored
from weightclass.errors import UserError

AHEAD = 4  # batches that are read while one is used


class Loader:
    """Serves every image once an epoch, in batches of `batch_size` on `device`, in an order drawn from (seed, epoch).

    The last batch may be smaller; `drop_last` leaves it out. A last batch of a single image is always left
    out, for batch norm cannot use it; being drawn anew, the image left out differs from epoch to epoch.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, seed: int, drop_last: bool = False, device: torch.device | None = None
    ):
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.device = device or dataset.labels.device
        self.streams = isinstance(dataset.images, Stored) or dataset.images.device.type != self.device.type
        full, tail = divmod(len(dataset), batch_size)
        self.steps = full + (tail > 1 and not drop_last)
        """Batches per epoch."""
        if not self.steps:
            raise UserError(f"{len(dataset)} images make no batch of {batch_size}: choose a smaller train.batch_size")

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (any whole number) from step `first` on."""
        labels = self.dataset.labels
        order = seeding.permutation(seeding.key(self.seed, "order", epoch), len(self.dataset), labels.device)
        chosen = order.split(self.batch_size)[first : self.steps]
        jobs = (partial(self._read, indices) for indices in chosen)
        for parts in ahead(jobs, 1, AHEAD) if self.streams else (job() for job in jobs):
            # Moved by the thread that computes: neither MPS nor memory that runs out is for another one.
            images, labels, indices = (part.to(self.device, non_blocking=part.is_pinned()) for part in parts)
            yield Batch(images, labels, torch.arange(len(labels), device=self.device), indices)

    def _read(self, indices: Tensor) -> tuple[Tensor, ...]:
        parts = self.dataset.images[indices], self.dataset.labels[indices], indices
        if self.streams and self.device.type == "cuda":  # from pinned memory a copy waits for nobody
            return tuple(part.pin_memory() for part in parts)
        return parts
