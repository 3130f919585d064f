from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightclass.batching import cuts, parts


@pytest.mark.parametrize(
    ("images", "size", "pieces"),
    [(8, 0, [8]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (9, 4, [4, 5]), (3, 4, [3]), (1, 4, [1]), (1, 0, [1])],
)
def test_cuts(images: int, size: int, pieces: list[int]) -> None:
    assert cuts(images, size) == pieces


@given(st.integers(2, 400), st.integers(1, 40), st.integers(2, 20))
def test_groups_of_micro_batches_are_the_groups_of_the_batch(images: int, groups: int, group: int) -> None:
    in_parts = [size for part in cuts(images, groups * group) for size in cuts(part, group)]
    assert in_parts == cuts(images, group)
    assert sum(in_parts) == images
    assert 1 not in in_parts


@given(st.integers(2, 400), st.integers(0, 40), st.integers(1, 9))
def test_parts_hold_whole_groups_and_whole_pairs(images: int, group: int, ranks: int) -> None:
    sizes = parts(images, group, ranks)
    if not sizes:  # fewer groups, or pairs of groups, than ranks
        assert images < ranks * 2 * max(group, 1) + 2
        return
    assert (len(sizes), sum(sizes)) == (ranks, images)
    assert all(start % 2 == 0 for start in accumulate(sizes[:-1]))
    assert min(sizes) >= 2
    assert group == 0 or [each for size in sizes for each in cuts(size, group)] == cuts(images, group)


def test_parts() -> None:
    assert parts(128, 0, 1) == [128]
    assert parts(128, 0, 3) == [42, 42, 44]
    assert parts(128, 32, 3) == [32, 32, 64]
    assert parts(129, 32, 2) == [64, 65]
    assert parts(100, 25, 2) == [50, 50]
    assert parts(100, 50, 3) == parts(5, 0, 3) == []
