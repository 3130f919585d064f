"""The split equals its plain twin and keeps its promises; moments are exact; the digest sees every change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import data as twin
from weightclass.data.dataset import Dataset, stratified_split
from weightclass.data.store import Stored
from weightclass.errors import UserError


def made_up(labels: list[int], classes: int, channels: int = 1, side: int = 2, seed: int = 0) -> Dataset:
    shape = (len(labels), channels, side, side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Dataset(images, torch.tensor(labels, dtype=torch.int64), tuple(f"class {label}" for label in range(classes)))


def numbered(labels: list[int], classes: int) -> Dataset:
    """Each image's one pixel pair spells its place, so that a part tells where its images came from."""
    places = torch.arange(len(labels))
    images = torch.stack([places // 256, places % 256], 1).to(torch.uint8).view(-1, 1, 1, 2)
    return Dataset(images, torch.tensor(labels), tuple(map(str, range(classes))))


def places(part: Dataset) -> list[int]:
    high, low = part.images.long().flatten(1).unbind(1)
    return (high * 256 + low).tolist()


def test_len_shape_and_subset():
    dataset = made_up([0, 1, 2, 1], 3, channels=3, side=5)
    assert len(dataset) == 4
    assert dataset.image_shape == (3, 5, 5)
    part = dataset.to("cpu").subset(torch.tensor([3, 0]))
    assert part.labels.tolist() == [1, 0]
    assert torch.equal(part.images, dataset.images[[3, 0]])
    assert part.classes == dataset.classes


def test_stored_images_are_a_set_like_any_other(tmp_path: Path):
    """Digest apart: that one comes from the file's."""
    tensor = made_up([0, 1, 2, 1, 0, 2], 3, channels=2, side=3)
    (tmp_path / "images.bin").write_bytes(tensor.images.numpy().tobytes())
    stored = Dataset(Stored(tmp_path / "images.bin", (6, 2, 3, 3), "ab"), tensor.labels, tensor.classes)
    assert stored.mean_std() == tensor.mean_std()
    assert stored.image_shape == (2, 3, 3)
    parts = stratified_split(stored, 3, 0)
    for part, same in zip(parts, stratified_split(tensor, 3, 0), strict=True):
        assert isinstance(part.images, Stored)
        assert torch.equal(part.to("cpu").images, same.images)
        assert torch.equal(part.labels, same.labels)
    assert len({part.digest() for part in (stored, *parts)}) == 3
    assert stored.digest() == stored.subset(torch.arange(6)).digest() != tensor.digest()


# --- digest ------------------------------------------------------------------------------------------------


def test_digest_is_a_golden_value():
    dataset = Dataset(torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2), torch.tensor([1, 0]), ("a", "b"))
    assert dataset.digest() == "eb9bbd068f376d7c50d194a5216ce00f6c21486af9930acadedabd0aa3e4fb35"


def test_digest_sees_pixels_labels_names_order_and_shape_but_not_layout():
    base = made_up([0, 1, 1, 0], 2, channels=2)
    swapped = base.images.clone()
    swapped[0, 0, 0, 0] ^= 1
    others = [
        Dataset(swapped, base.labels, base.classes),
        Dataset(base.images, base.labels.flip(0).roll(1), base.classes),
        Dataset(base.images, base.labels, ("class 0", "class one")),
        base.subset(torch.tensor([1, 0, 2, 3])),
        Dataset(base.images.reshape(4, 1, 4, 2), base.labels, base.classes),
    ]
    assert len({base.digest(), *(other.digest() for other in others)}) == 6
    strided = base.images.to(memory_format=torch.channels_last)
    assert Dataset(strided, base.labels, base.classes).digest() == base.digest()


# --- mean and standard deviation ---------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 3), st.integers(1, 6), st.integers(0, 99))
def test_mean_std_equals_two_passes_in_float64(count: int, channels: int, side: int, seed: int):
    dataset = made_up([0] * count, 1, channels, side, seed)
    for ours, plain in zip(dataset.mean_std(), twin.mean_std(dataset), strict=True):
        assert ours == pytest.approx(plain, abs=1e-12)


def test_mean_std_does_not_drift_with_the_number_of_images():
    """2^25 pixels of 255 and one image of 254: a float32 sum would lose the difference."""
    images = torch.full((513, 1, 256, 256), 255, dtype=torch.uint8)
    images[0] = 254
    (mean,), (std,) = Dataset(images, torch.zeros(513, dtype=torch.int64), ("a",)).mean_std()
    assert mean == (512 * 255 + 254) / (513 * 255)
    assert std == pytest.approx((512 / 513**2) ** 0.5 / 255, rel=1e-12)


def test_a_set_of_one_grey_has_no_deviation():
    assert made_up([0], 1, 2, 1).mean_std()[1] == (0.0, 0.0)


# --- stratified split --------------------------------------------------------------------------------------


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[int], int, int, int]:
    classes = draw(st.integers(1, 5))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=2, max_size=60))
    return labels, classes, draw(st.integers(1, len(labels) - 1)), draw(st.integers(0, 2**40))


@given(splits(), st.sampled_from(["validation", "subset"]))
def test_split_equals_the_plain_twin_or_refuses_an_empty_class(case: tuple[list[int], int, int, int], purpose: str):
    labels, classes, count, seed = case
    dataset = numbered(labels, classes)
    sizes = [labels.count(label) for label in range(classes)]
    least, most = sum(size > 1 for size in sizes), sum(size - 1 for size in sizes if size)
    assert dataset.bounds() == (least, most)
    if not max(least, 1) <= count <= most:
        with pytest.raises(UserError, match=rf"^data\.{purpose} = {count}: of .* choose {least} to {most}, or 0"):
            stratified_split(dataset, count, seed, purpose)
        return
    rest, held = stratified_split(dataset, count, seed, purpose)
    assert places(held) == twin.held_out(labels, classes, count, seed, purpose)
    assert len(held) == count
    assert all(rest.class_sizes()[label] for label, size in enumerate(sizes) if size)
    assert all(held.class_sizes()[label] for label, size in enumerate(sizes) if size > 1)
    assert sorted(places(rest) + places(held)) == list(range(len(labels)))
    assert places(rest) == sorted(places(rest))
    assert [labels[place] for place in places(rest)] == rest.labels.tolist()


def test_split_is_a_golden_value_and_depends_on_seed_and_purpose():
    dataset = numbered([0, 1, 2, 3] * 10, 4)
    draws = [
        stratified_split(dataset, 8, seed, purpose)[1]
        for seed, purpose in ((0, "validation"), (1, "validation"), (0, "test"))
    ]
    assert places(draws[0]) == [10, 12, 16, 19, 26, 31, 33, 37]
    assert len({tuple(places(draw)) for draw in draws}) == 3


@pytest.mark.parametrize("count", [-1, 0, 1, 19, 20, 21])
def test_a_split_that_leaves_nothing_is_refused(count: int):
    with pytest.raises(UserError, match=rf"^data\.validation = {count}: of 20 images in 2 classes, .*choose 2 to 18"):
        stratified_split(numbered([0, 1] * 10, 2), count, 0)


def test_a_class_without_images_is_no_obstacle():
    rest, held = stratified_split(numbered([0, 2] * 10, 3), 4, 0)
    assert rest.classes == held.classes
    assert held.labels.bincount(minlength=3).tolist() == [2, 0, 2]
    assert rest.labels.bincount(minlength=3).tolist() == [8, 0, 8]
