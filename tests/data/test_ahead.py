"""Results come in order, a bounded number of them ahead, and nothing is left running."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightclass.data.ahead import ahead


@given(st.integers(0, 20), st.integers(1, 4), st.integers(1, 9))
def test_results_come_in_order(count: int, threads: int, depth: int) -> None:
    jobs = (partial(divmod, n, 3) for n in range(count))
    assert list(ahead(jobs, threads, depth)) == [divmod(n, 3) for n in range(count)]


def test_no_more_than_so_many_are_taken_on() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[Callable[[], int]]:
        for n in range(100):
            taken.append(n)
            yield partial(int, n)

    results = ahead(jobs(), 2, 5)
    for n in range(3):
        assert next(results) == n
        assert len(taken) == 5 + n + 1


def test_left_early_it_stops() -> None:
    gate = threading.Event()
    results = ahead([int, *[gate.wait] * 50], 2, 4)
    assert next(results) == 0
    gate.set()
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_what_a_job_raises_comes_out_in_its_place() -> None:
    results = ahead([int, partial(int, "x"), int], 2, 3)
    assert next(results) == 0
    with pytest.raises(ValueError, match="invalid literal"):
        next(results)
