"""The loader equals a plain Python loop, and an epoch entered at any step goes on as it would have."""

from __future__ import annotations

import threading
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.reference import data as twin
from weightclass import ranks
from weightclass.batching import Batch
from weightclass.data.dataset import Dataset
from weightclass.data.loader import Loader
from weightclass.data.store import Stored
from weightclass.errors import UserError


def made_up(count: int) -> Dataset:
    images = torch.arange(count * 4).view(count, 1, 2, 2).to(torch.uint8)
    return Dataset(images, torch.arange(count) % 3, ("a", "b", "c"))


def plain(batch: Batch) -> tuple[list, ...]:
    return batch.images.tolist(), batch.labels.tolist(), batch.slots.tolist(), batch.indices.tolist()


counts, sizes, seeds, epochs = st.integers(2, 40), st.integers(1, 45), st.integers(0, 2**40), st.integers(0, 300)


@given(counts, sizes, st.tuples(seeds, epochs), st.booleans(), st.integers(0, 45))
def test_equals_a_plain_loop_from_any_step(count: int, size: int, when: tuple[int, int], drop_last: bool, first: int):
    dataset, (seed, epoch) = made_up(count), when
    expected = twin.batches(dataset, size, seed, epoch, drop_last)
    assume(expected)
    loader = Loader(dataset, size, seed, drop_last)
    assert loader.steps == len(expected)
    assert list(map(plain, loader.epoch(epoch))) == expected
    assert list(map(plain, loader.epoch(epoch, first))) == expected[first:]


@given(counts, sizes, st.integers(0, 45))
def test_streamed_batches_are_the_same(tmp_path_factory: pytest.TempPathFactory, count: int, size: int, first: int):
    dataset = made_up(count)
    file = tmp_path_factory.mktemp("stored") / "images.bin"
    file.write_bytes(dataset.images.numpy().tobytes())
    stored = Dataset(Stored(file, (count, 1, 2, 2), ""), dataset.labels, dataset.classes)
    assume(twin.batches(dataset, size, 1, 2, False))
    held, streamed = Loader(dataset, size, 1), Loader(stored, size, 1)
    assert (held.streams, streamed.streams) == (False, True)
    assert list(map(plain, streamed.epoch(2, first))) == list(map(plain, held.epoch(2, first)))


def test_a_stream_left_early_leaves_no_thread(tmp_path: Path):
    (tmp_path / "images.bin").write_bytes(bytes(400))
    dataset = Dataset(Stored(tmp_path / "images.bin", (100, 1, 2, 2), ""), torch.arange(100) % 3, ("a", "b", "c"))
    batches = Loader(dataset, 4, 0).epoch(0)
    assert len(next(batches).labels) == 4
    assert [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_every_image_is_served_once_in_an_order_of_its_own_each_epoch():
    loader = Loader(made_up(50), 8, seed=3)
    orders = [torch.cat([batch.images[:, 0, 0, 0] for batch in loader.epoch(epoch)]).tolist() for epoch in range(4)]
    assert all(sorted(order) == list(range(0, 200, 4)) for order in orders)
    assert len(set(map(tuple, orders))) == 4


def test_batches_are_uint8_images_with_int64_labels_slots_and_indices():
    batch = next(Loader(made_up(5), 4, 0).epoch(0))
    assert batch.images.dtype == torch.uint8
    assert {part.dtype for part in (batch.labels, batch.slots, batch.indices)} == {torch.int64}
    assert batch.images.is_contiguous()


@pytest.mark.parametrize(
    ("count", "size", "drop_last", "lengths"),
    [
        (9, 4, False, [4, 4]),
        (10, 4, False, [4, 4, 2]),
        (10, 4, True, [4, 4]),
        (3, 8, False, [3]),
        (3, 1, False, [1] * 3),
    ],
)
def test_a_last_batch_of_one_image_is_left_out(count: int, size: int, drop_last: bool, lengths: list[int]):
    loader = Loader(made_up(count), size, 0, drop_last)
    assert [len(batch.labels) for batch in loader.epoch(0)] == lengths
    assert loader.steps == len(lengths)


@pytest.mark.parametrize(("count", "size", "drop_last"), [(1, 2, False), (7, 8, True)])
def test_a_loader_without_a_batch_is_refused(count: int, size: int, drop_last: bool):
    with pytest.raises(UserError, match=f"{count} images make no batch of {size}"):
        Loader(made_up(count), size, 0, drop_last)


@given(counts, st.integers(4, 45), st.sampled_from([0, 2, 3, 4]), st.integers(1, 4), st.integers(0, 3))
def test_parts_of_ranks_make_the_batches_of_one(count: int, size: int, group: int, many: int, first: int):
    dataset = made_up(count)
    assume(count > 1 and size >= many * 2 * max(group, 1))
    whole = list(Loader(dataset, size, 1).epoch(2, first))
    with pytest.MonkeyPatch.context() as patch:
        shares = []
        for rank in range(many):
            patch.setattr(ranks, "here", ranks.Here(rank, many))
            shares.append(list(Loader(dataset, size, 1, group=group).epoch(2, first)))
    for batch, *parts in zip(whole, *shares, strict=True):
        if parts[0].total:
            assert {part.total for part in parts} == {len(batch.labels)}
            assert tuple([*chain(*each)] for each in zip(*map(plain, parts), strict=True)) == plain(batch)
        else:  # too small to be shared, or one rank
            assert [plain(part) for part in parts] == [plain(batch)] * many


def test_a_batch_that_cannot_be_shared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranks, "here", ranks.Here(0, 3))
    with pytest.raises(UserError, match=r"batch of 4 images cannot .* 3 ranks in pairs of images: start fewer"):
        Loader(made_up(40), 4, 0)
    with pytest.raises(UserError, match=r"in whole groups of train.bn_group = 4 images, in pairs: .* smaller train.bn"):
        Loader(made_up(40), 8, 0, group=4)
