"""Ranks as threads of one process: what gloo does between processes, done by a barrier and a list."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from weightclass import ranks


class Here(threading.local):
    rank, size, local_rank, local_size = 0, 1, 0, 1


class Threads:
    """Runs a function on `size` ranks at a time, each a thread, and returns what each gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size, timeout=60)
        self.told: list[Any] = [None] * size
        self.here: Any = Here()
        monkeypatch.setattr(ranks, "here", self.here)
        for name in ("add_", "agree", "tell"):
            monkeypatch.setattr(ranks, name, getattr(self, name))

    def exchange(self, mine: Any) -> list[Any]:
        if self.here.size == 1:
            return [mine]
        self.told[self.here.rank] = mine
        self.barrier.wait()
        every = list(self.told)
        self.barrier.wait()
        return every

    def add_(self, tensors: Sequence[Tensor]) -> None:
        every = self.exchange([tensor.clone() for tensor in tensors])
        with torch.no_grad():
            for tensor, *all_of_it in zip(tensors, *every, strict=True):
                tensor.copy_(sum(all_of_it))

    def agree(self, reason: str | None) -> str | None:
        return next(filter(None, self.exchange(reason)), None)

    def tell(self, make: Callable[[], bytes]) -> bytes:
        return self.exchange(b"" if self.here.rank else make())[0]

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        results: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            self.here.rank, self.here.size = rank, self.size
            try:
                results[rank] = work(rank)
            except BaseException as error:
                self.barrier.abort()  # or the others would wait for this one
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for error in results:
            if isinstance(error, BaseException) and not isinstance(error, threading.BrokenBarrierError):
                raise error
        return results
