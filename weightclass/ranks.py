"""One training on several processes, which torchrun starts: who is who, and the few things that they tell each other.

A process without torchrun is rank 0 of 1, and torch.distributed is none of its business. A rank that fails says so,
unless another one already did, and ends; its connections close, so nobody waits for it. Data travels as bytes and
tensors, never as pickles.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from weightclass.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_PATIENCE = timedelta(hours=6)
"""What rank 0 may take to decode or judge while the others wait."""


@dataclass
class Here:
    """This process among those that share a training; `local_` counts those of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    speaks: bool = os.environ.get("RANK", "0") == "0"
    """Whether it falls to this process to tell of a failure."""
    trainings: int = 0
    """That were joined so far."""


here = Here()


@contextmanager
def joined() -> Iterator[None]:
    """Inside, this process is one of those that torchrun may have started. UserError: another of them has ended."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch
    from torch import distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun sets it unasked; each rank takes its share of the cores
        del os.environ["OMP_NUM_THREADS"]
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, here.rank, here.size = next(rendezvous("env://"))
    store, here.trainings = PrefixStore(f"training {here.trainings}", store), here.trainings + 1
    here.local_rank, here.local_size = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=_PATIENCE)
    try:
        yield
    except BaseException as error:
        time.sleep(0.5 * (here.rank > 0))  # of a mistake that all of them make, rank 0 tells
        with suppress(RuntimeError):  # torchrun itself is gone
            here.speaks = store.add("failures", 1) == 1
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            cure = "the same command continues from the last checkpoint"
            raise UserError(f"rank {here.rank} lost the others, for one of them has ended: {cure}") from None
        if isinstance(error, UserError) and here.rank:
            raise UserError(f"rank {here.rank}: {error}") from None
        raise
    finally:
        dist.destroy_process_group()
        here.size = here.local_size = 1


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process computes by itself, whatever the others do meanwhile."""
    sizes, here.size, here.local_size = (here.size, here.local_size), 1, 1
    try:
        yield
    finally:
        here.size, here.local_size = sizes


def add_(tensors: Sequence[Tensor]) -> None:
    """Sum each of `tensors` over all ranks, in place and as one message, to the same bits everywhere."""
    if here.size == 1:
        return
    import torch
    from torch import distributed as dist

    with torch.no_grad():
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


def agree(reason: str | None) -> str | None:
    """On every rank the reason (of at most 32 bytes) of the first one that has any. Waits for no device."""
    if here.size == 1:
        return reason
    import torch
    from torch import distributed as dist

    said = torch.zeros(here.size, 32, dtype=torch.uint8)
    said[here.rank] = torch.tensor([*(reason or "").encode().ljust(32, b"\0")])
    dist.all_reduce(said)
    return next(filter(None, (bytes(row).rstrip(b"\0").decode() for row in said.tolist())), None)


def tell(make: Callable[[], bytes]) -> bytes:
    """What `make` gives on rank 0, on every rank."""
    if here.size == 1:
        return make()
    import torch
    from torch import distributed as dist

    payload = bytearray() if here.rank else bytearray(make())
    length = torch.tensor(len(payload))
    dist.broadcast(length, 0)
    if length:
        payload = payload or bytearray(int(length))
        dist.broadcast(torch.frombuffer(payload, dtype=torch.uint8), 0)
    return bytes(payload)


def in_turn(work: Callable[[], T]) -> T:
    """`work` done by rank 0 first, so that the others find in the cache what it left there."""
    if here.rank:
        agree(None)
    with alone():
        done = work()
    if not here.rank:
        agree(None)
    return done
