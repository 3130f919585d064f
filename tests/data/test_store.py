"""A stored set answers as the tensor that it stands for."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weightclass.data import store
from weightclass.data.store import Stored

SHAPE = (11, 2, 3, 5)
WHOLE = torch.arange(330).remainder(251).to(torch.uint8).view(SHAPE)
ROWS = st.integers(-11, 10)
LISTS = st.lists(ROWS, max_size=20).map(lambda rows: torch.tensor(rows, dtype=torch.int64))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    path = tmp_path_factory.mktemp("store") / "images.bin"
    WHOLE.numpy().tofile(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield Stored(path, SHAPE, "the file's hash")
    gc.collect()  # frees the mapping before the folder goes


def within(rows: Tensor, whole: Tensor) -> Tensor:
    return rows[(-len(whole) <= rows) & (rows < len(whole))]


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.uint8 and found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_it_has_a_tensors_looks(stored: Stored):
    for name in ("shape", "dtype", "device", "nbytes"):
        assert getattr(stored, name) == getattr(WHOLE, name)
    assert len(stored) == len(WHOLE)


@settings(max_examples=50)
@given(selections=st.lists(LISTS, max_size=2), rows=LISTS, start=ROWS, stop=ROWS, step=st.integers(1, 3))
def test_it_is_indexed_as_a_tensor(
    stored: Stored, selections: list[Tensor], rows: Tensor, start: int, stop: int, step: int
):
    expected = WHOLE
    for selection in selections:
        selection = within(selection, expected)
        stored, expected = stored.select(selection), expected[selection]
    rows = within(rows, expected)
    assert stored.shape == expected.shape and stored.nbytes == expected.nbytes
    assert_same(stored[rows], expected[rows])
    assert_same(stored[rows.tolist()], expected[rows])
    assert_same(stored[start:stop:step], expected[start:stop:step])
    assert_same(stored.to("cpu"), expected)


def test_masks_work_and_wrong_rows_do_not(stored: Stored):
    mask = torch.arange(11) % 3 == 0
    assert_same(stored[mask], WHOLE[mask])
    assert_same(stored.select(mask)[:], WHOLE[mask])
    with pytest.raises(IndexError):
        stored[[11]]


def test_what_it_gives_is_a_copy(stored: Stored):
    stored[:2].zero_()
    stored[[0]].zero_()
    stored.to("cpu").zero_()
    assert_same(stored.to("cpu"), WHOLE)


def test_it_moves_in_pieces(stored: Stored, monkeypatch: pytest.MonkeyPatch):
    for piece in (1, 100):  # less than a row, three rows
        monkeypatch.setattr(store, "PIECE", piece)
        assert_same(stored.select(torch.arange(10, -1, -1)).to("cpu"), WHOLE.flip(0))


def test_its_digest_knows_pixels_shape_and_rows(stored: Stored, tmp_path: Path):
    path = tmp_path / "images.bin"
    WHOLE.numpy().tofile(path)
    turned = Stored(path, (11, 2, 5, 3), "the file's hash")
    other = Stored(path, SHAPE, "another hash")
    some, all_again = stored.select(torch.tensor([1, 2])), stored.select(torch.arange(11))
    different = [stored, turned, other, some, stored.select(torch.tensor([2, 1])), some.select(torch.tensor([0]))]
    assert len({one.digest() for one in different}) == len(different)
    assert all_again.digest() == stored.digest() and len(stored.digest()) == 64
    assert stored.select(torch.tensor([2])).digest() == some.select(torch.tensor([1])).digest()


def test_a_file_larger_than_memory_opens(tmp_path: Path):
    path, size = tmp_path / "images.bin", 2**40
    try:
        with path.open("wb") as file:
            file.truncate(size)  # a hole: takes no room
    except OSError:
        pytest.skip("this file system has no files of a terabyte")
    assert path.stat().st_blocks < 2**20 if hasattr(path.stat(), "st_blocks") else True
    huge = Stored(path, (size // 2**20, 1, 1024, 1024), "")
    assert huge.nbytes == size and huge[[-1]].sum() == 0
