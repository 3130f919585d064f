"""Slow plain twins of weightclass.data: one image, one class, one pixel at a time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch

from weightclass import seeding
from weightclass.data.dataset import Dataset


def order(key: int, count: int) -> list[int]:
    """`range(count)` sorted by each number's own hash."""
    return sorted(range(count), key=lambda place: int(seeding.bits(key, torch.tensor([place]))[0, 0]))


def batches(dataset: Dataset, size: int, seed: int, epoch: int, drop_last: bool) -> list[tuple[list, ...]]:
    """The epoch as lists of (images, labels, slots, indices)."""
    whole, batch = [], []
    for place in order(seeding.key(seed, "order", epoch), len(dataset)):
        batch.append(place)
        if len(batch) == size:
            whole.append(batch)
            batch = []
    if len(batch) > 1 and not drop_last:
        whole.append(batch)
    images, labels = dataset.images.tolist(), dataset.labels.tolist()
    return [([images[i] for i in b], [labels[i] for i in b], list(range(len(b))), b) for b in whole]


def quotas(sizes: list[int], count: int) -> list[int]:
    """Hamilton's method with fractions: floors first, then one each to the largest remainders, lower label first.

    Then one by one into 1 .. size - 1, a single image staying where it is.
    """
    shares = [Fraction(count * size, sum(sizes)) for size in sizes]
    given = [int(share) for share in shares]
    while sum(given) < count:
        lacking = [share - got for share, got in zip(shares, given, strict=True)]
        given[lacking.index(max(lacking))] += 1
    for label, size in enumerate(sizes):
        given[label] = 0 if size < 2 else 1 if given[label] < 1 else size - 1 if given[label] >= size else given[label]
    while sum(given) > count:
        spare = [got - 1 for got in given]
        given[spare.index(max(spare))] -= 1
    while sum(given) < count:
        room = [size - 1 - got for size, got in zip(sizes, given, strict=True)]
        given[room.index(max(room))] += 1
    return given


def held_out(labels: list[int], classes: int, count: int, seed: int, purpose: str) -> list[int]:
    """Places of the held-out images, ascending."""
    members = [[place for place, label in enumerate(labels) if label == wanted] for wanted in range(classes)]
    held = []
    for label, quota in enumerate(quotas([len(some) for some in members], count)):
        first = order(seeding.key(seed, purpose, label), len(members[label]))[:quota]
        held += [members[label][place] for place in first]
    return sorted(held)


def mean_std(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The textbook's two passes in float64."""
    pixels = dataset.images.double() / 255
    mean = pixels.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((pixels - mean) ** 2).mean(dim=(0, 2, 3))
    return tuple(mean.flatten().tolist()), tuple(variance.sqrt().tolist())


def read_binary(path: Path, label_bytes: int = 1) -> tuple[list[int], list[list[int]]]:
    """Labels (the last label byte) and rows of 3,072 pixels, record by record."""
    labels, rows = [], []
    with path.open("rb") as file:
        while record := file.read(label_bytes + 3072):
            labels.append(record[label_bytes - 1])
            rows.append(list(record[label_bytes:]))
    return labels, rows
