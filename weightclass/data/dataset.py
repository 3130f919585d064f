"""A labelled set of images as three plain values, and the one way it is ever split.

A set that fits in memory is tensors; a larger one has `Stored` images, rows of a file that are indexed alike.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from weightclass import seeding
from weightclass.data.store import PIECE, Stored
from weightclass.errors import UserError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images uint8 [N, C, H, W], their labels int64 [N] in `range(len(classes))`, and the classes' names."""

    images: Tensor | Stored
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
        """Everything in memory on `device`."""
        return Dataset(self.images.to(device), self.labels.to(device), self.classes)

    def subset(self, indices: Tensor) -> Dataset:
        """The images at int64 `indices`, in that order: a copy, or a view of stored ones."""
        images = self.images.select(indices) if isinstance(self.images, Stored) else self.images[indices]
        return Dataset(images, self.labels[indices], self.classes)

    def digest(self) -> str:
        """SHA-256 (64 hex digits) of shape, classes, images and labels; another order is another digest."""
        digest = hashlib.sha256(json.dumps([self.images.shape, self.classes]).encode())
        for part in (self.images, self.labels):
            stored = isinstance(part, Stored)
            digest.update(part.digest().encode() if stored else part.cpu().contiguous().numpy().data.cast("B"))
        return digest.hexdigest()

    def class_sizes(self) -> list[int]:
        """Images of each class."""
        return torch.bincount(self.labels, minlength=len(self.classes)).tolist()

    def bounds(self) -> tuple[int, int]:
        """The fewest and the most images that `stratified_split` can hold out."""
        sizes = self.class_sizes()
        return sum(size > 1 for size in sizes), sum(max(0, size - 1) for size in sizes)

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and (population) standard deviation of pixels / 255, one number a channel.

        Summed in whole numbers over a channel's 256-bin histogram: exact, so alike on any device and
        thread count, and no float copy of the images is ever made.
        """
        histograms = torch.zeros(self.image_shape[0], 256, dtype=torch.int64, device=self.images.device)
        together = max(1, PIECE // math.prod(self.image_shape))  # a stored set may be larger than memory
        for start in range(0, len(self), together):
            for histogram, channel in zip(histograms, self.images[start : start + together].unbind(1), strict=True):
                histogram += torch.bincount(channel.flatten(), minlength=256)
        means, stds = zip(*map(_moments, histograms.tolist()), strict=True)
        return means, stds


def _moments(histogram: list[int]) -> tuple[float, float]:
    count = sum(histogram)
    total = sum(value * times for value, times in enumerate(histogram))
    squares = sum(value * value * times for value, times in enumerate(histogram))
    return total / (255 * count), math.sqrt(count * squares - total * total) / (255 * count)


def stratified_split(dataset: Dataset, count: int, seed: int, purpose: str = "validation") -> tuple[Dataset, Dataset]:
    """`(rest, held_out)` with exactly `count` images held out, each class in proportion to its size.

    A class of n out of N images gives floor(count * n / N); the images still missing come one each from
    the classes with the largest remainders, the lower label first. No class gives all or none, but one of a single
    image, which it keeps. Within a class, the images are those that come first in
    `permutation(key(seed, purpose, label))`. Both parts keep the set's order. `purpose` keeps draws apart and is the
    recipe key that errors name.

    Raises:
        UserError: one of the parts would lack a class that has two images or more.
    """
    sizes, (least, most) = dataset.class_sizes(), dataset.bounds()
    if not max(least, 1) <= count <= most:
        raise UserError(
            f"data.{purpose} = {count}: of {len(dataset):,} images in {len(sizes)} classes, each part needs some of "
            f"every class: choose {least:,} to {most:,}, or 0 for none"
        )
    held = torch.zeros(len(dataset), dtype=torch.bool, device=dataset.labels.device)
    for label, quota in enumerate(_quotas(sizes, count)):
        members = torch.nonzero(dataset.labels == label).flatten()
        order = seeding.permutation(seeding.key(seed, purpose, label), len(members), members.device)
        held[members[order[:quota]]] = True
    return dataset.subset(torch.nonzero(~held).flatten()), dataset.subset(torch.nonzero(held).flatten())


def _quotas(sizes: list[int], count: int) -> list[int]:
    """`count` shared out in proportion to `sizes` by largest remainder, in whole numbers throughout, then moved into
    1 to size - 1 (0 for a single image) at the cost of the classes with the most to give or the most room."""
    total = sum(sizes)
    quotas = [count * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda label: (-(count * sizes[label] % total), label))
    for label in by_remainder[: count - sum(quotas)]:
        quotas[label] += 1
    quotas = [min(max(quota, 1), size - 1) if size > 1 else 0 for quota, size in zip(quotas, sizes, strict=True)]
    while (excess := sum(quotas) - count) != 0:
        room = [quota - 1 if excess > 0 else size - 1 - quota for quota, size in zip(quotas, sizes, strict=True)]
        quotas[room.index(max(room))] -= 1 if excess > 0 else -1
    return quotas
