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


def batches(dataset: Dataset, size: int, seed: int, epoch: int, drop_last: bool) -> list[tuple[list, list, list]]:
    """The epoch as lists of (images, labels, slots)."""
    whole, batch = [], []
    for place in order(seeding.key(seed, "order", epoch), len(dataset)):
        batch.append(place)
        if len(batch) == size:
            whole.append(batch)
            batch = []
    if len(batch) > 1 and not drop_last:
        whole.append(batch)
    images, labels = dataset.images.tolist(), dataset.labels.tolist()
    return [([images[i] for i in b], [labels[i] for i in b], list(range(len(b)))) for b in whole]


def quotas(sizes: list[int], count: int) -> list[int]:
    """Hamilton's method with fractions: floors first, then one each to the largest remainders, lower label first."""
    shares = [Fraction(count * size, sum(sizes)) for size in sizes]
    given = [int(share) for share in shares]
    while sum(given) < count:
        lacking = [share - got for share, got in zip(shares, given, strict=True)]
        given[lacking.index(max(lacking))] += 1
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


def read_binary(path: Path) -> tuple[list[int], list[list[int]]]:
    """Labels and rows of 3,072 pixels, record by record."""
    labels, rows = [], []
    with path.open("rb") as file:
        while record := file.read(3073):
            labels.append(record[0])
            rows.append(list(record[1:]))
    return labels, rows
