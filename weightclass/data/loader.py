"""Batches by indexing: a set on the device has nothing to load, any other is read one step ahead.

The order of an epoch is a function of seed and epoch alone, so a run can resume at any step of it, and a batch is the
same wherever its images lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from weightclass import ranks, seeding
from weightclass.batching import Batch, parts
from weightclass.data.ahead import ahead
from weightclass.data.dataset import Dataset
from weightclass.data.store import Stored
from weightclass.errors import UserError

AHEAD = 4  # batches that are read while one is used


class Loader:
    """Serves every image once an epoch, in batches of `batch_size` on `device`, in an order drawn from (seed, epoch).

    The last batch may be smaller; `drop_last` leaves it out. A last batch of a single image is always left
    out, for batch norm cannot use it; being drawn anew, the image left out differs from epoch to epoch.

    Of several ranks each gets its part of every batch, in whole groups of `group` images (0: any), or the whole of a
    last batch that is too small to be shared.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        drop_last: bool = False,
        device: torch.device | None = None,
        group: int = 0,
    ):
        self.dataset, self.batch_size, self.seed, self.group = dataset, batch_size, seed, group
        self.device = device or dataset.labels.device
        self.streams = isinstance(dataset.images, Stored) or dataset.images.device.type != self.device.type
        full, tail = divmod(len(dataset), batch_size)
        self.steps = full + (tail > 1 and not drop_last)
        """Batches per epoch."""
        if not self.steps:
            raise UserError(f"{len(dataset)} images make no batch of {batch_size}: choose a smaller train.batch_size")
        if not parts(batch_size, group, ranks.here.size):
            what = f"whole groups of train.bn_group = {group} images, in pairs" if group else "pairs of images"
            raise UserError(
                f"a batch of {batch_size} images cannot be shared out to {ranks.here.size} ranks in {what}: start fewer"
                f" ranks, or choose another train.batch_size{' or a smaller train.bn_group' if group else ''}"
            )

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` (any whole number) from step `first` on."""
        labels = self.dataset.labels
        order = seeding.permutation(seeding.key(self.seed, "order", epoch), len(self.dataset), labels.device)
        chosen = order.split(self.batch_size)[first : self.steps]
        jobs = (partial(self._read, *self._part(indices)) for indices in chosen)
        for total, start, *read in ahead(jobs, 1, AHEAD) if self.streams else (job() for job in jobs):
            # Moved by the thread that computes: neither MPS nor memory that runs out is for another one.
            images, labels, indices = (each.to(self.device, non_blocking=each.is_pinned()) for each in read)
            slots = torch.arange(start, start + len(labels), device=self.device)
            yield Batch(images, labels, slots, indices, total)

    def _part(self, indices: Tensor) -> tuple[int, int, Tensor]:
        """Of a batch its size, where it is shared (see `Batch.total`), this rank's part's start, and the part."""
        if ranks.here.size == 1 or not (sizes := parts(len(indices), self.group, ranks.here.size)):
            return 0, 0, indices
        return len(indices), sum(sizes[: ranks.here.rank]), indices.split(sizes)[ranks.here.rank]

    def _read(self, total: int, start: int, indices: Tensor) -> tuple[Any, ...]:
        read = self.dataset.images[indices], self.dataset.labels[indices], indices
        if self.streams and self.device.type == "cuda":  # from pinned memory a copy waits for nobody
            read = tuple(each.pin_memory() for each in read)
        return total, start, *read
