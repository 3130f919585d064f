"""Work that is done ahead of whoever waits for it: decoding pictures, reading batches from a file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def ahead(jobs: Iterable[Callable[[], T]], threads: int, depth: int) -> Iterator[T]:
    """The results of `jobs` in their order, `threads` of them at work on at most `depth` that nobody has asked for."""
    jobs = iter(jobs)
    with ThreadPoolExecutor(threads, "ahead") as pool:
        waiting = deque(pool.submit(job) for job in islice(jobs, depth))
        try:
            while waiting:
                ready = waiting.popleft().result()
                waiting.extend(pool.submit(job) for job in islice(jobs, 1))
                yield ready
        finally:
            pool.shutdown(cancel_futures=True)
