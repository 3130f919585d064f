"""A labelled set of images as three plain values, and the one way it is ever split.

Sets of this size fit in memory whole, so a `Dataset` is tensors, not an object that yields items.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from weightclass import seeding
from weightclass.errors import UserError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 [N, C, H, W], their labels int64 [N] in `range(len(classes))`, and the classes' names."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> Dataset:
        return Dataset(self.images.to(device), self.labels.to(device), self.classes)

    def subset(self, indices: Tensor) -> Dataset:
        """A copy of the images at int64 `indices`, in that order."""
        return Dataset(self.images[indices], self.labels[indices], self.classes)

    def digest(self) -> str:
        """SHA-256 (64 hex digits) of shape, classes, images and labels; another order is another digest."""
        digest = hashlib.sha256(json.dumps([self.images.shape, self.classes]).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data.cast("B"))
        return digest.hexdigest()

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and (population) standard deviation of pixels / 255, one number a channel.

        Summed in whole numbers over a channel's 256-bin histogram: exact, so alike on any device and
        thread count, and no float copy of the images is ever made.
        """
        means, stds = zip(*map(_moments, self._histograms()), strict=True)
        return means, stds

    def _histograms(self) -> Iterator[list[int]]:
        for channel in self.images.unbind(1):
            yield torch.bincount(channel.flatten(), minlength=256).tolist()


def _moments(histogram: list[int]) -> tuple[float, float]:
    count = sum(histogram)
    total = sum(value * times for value, times in enumerate(histogram))
    squares = sum(value * value * times for value, times in enumerate(histogram))
    return total / (255 * count), math.sqrt(count * squares - total * total) / (255 * count)


def stratified_split(dataset: Dataset, count: int, seed: int, purpose: str = "validation") -> tuple[Dataset, Dataset]:
    """`(rest, held_out)` with exactly `count` images held out, each class in proportion to its size.

    A class of n out of N images gives floor(count * n / N); the images still missing come one each from
    the classes with the largest remainders, the lower label first. Within a class, the images are those
    that come first in `permutation(key(seed, purpose, label))`. Both parts keep the set's order.
    `purpose` keeps draws apart and is the recipe key that errors name.

    Raises:
        UserError: one of the parts would be empty, or would lack a class that the set has.
    """
    sizes = torch.bincount(dataset.labels, minlength=len(dataset.classes)).tolist()
    quotas = _quotas(sizes, count)
    for size, quota, name in zip(sizes, quotas, dataset.classes, strict=True):
        if count < 1 or count >= len(dataset) or (size and not 0 < quota < size):
            raise UserError(
                f"data.{purpose} = {count}: takes {quota} of {size} images of class {name!r} ({len(dataset)} in all), "
                "but each part needs some of every class; choose another number, or 0 for none"
            )
    held = torch.zeros(len(dataset), dtype=torch.bool, device=dataset.labels.device)
    for label, quota in enumerate(quotas):
        members = torch.nonzero(dataset.labels == label).flatten()
        order = seeding.permutation(seeding.key(seed, purpose, label), len(members), members.device)
        held[members[order[:quota]]] = True
    return dataset.subset(torch.nonzero(~held).flatten()), dataset.subset(torch.nonzero(held).flatten())


def _quotas(sizes: list[int], count: int) -> list[int]:
    """`count` shared out in proportion to `sizes` by largest remainder, in whole numbers throughout."""
    total = sum(sizes)
    quotas = [count * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda label: (-(count * sizes[label] % total), label))
    for label in by_remainder[: count - sum(quotas)]:
        quotas[label] += 1
    return quotas
