from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightclass.batching import cuts


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
