"""How long a network takes in each of its formats, fairly: warmed up, in rotation, with the others' threads at rest.

And what the CPU has that decides it: int8 is fast where one instruction multiplies bytes and adds the products.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from itertools import chain

import msgspec
import numpy as np
import torch

from weightclass.device import cores, environment

Answers = Callable[[np.ndarray], np.ndarray]
"""Images uint8 [n, C, H, W] to logits float32 [n, classes]."""

TURN, LONGEST = 10, 250_000_000
"""Counted calls in a turn, and the nanoseconds after which a slow format's turn ends early."""
ROUNDS, STEADY = 20, 0.01
"""After how many rounds medians may be taken for steady, and how far those of odd and even rounds may then differ."""


class Timing(msgspec.Struct, frozen=True):
    """Milliseconds of `n` calls."""

    p50: float
    p95: float
    n: int


def settle(most: float = 0.3) -> None:
    """Wait, at most so many seconds, until this process computes nothing.

    The threads of a runtime that has just answered spin on in wait of the next task (onnxruntime's for 20 to 50 ms,
    OpenMP's for 5) and would take a core from the next runtime; a file that runs alone is never disturbed so.
    """
    end = time.monotonic() + most
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(0.003)
        if time.process_time() - before < 0.0005:
            return


def measure(
    runners: Mapping[str, Answers],
    images: np.ndarray,
    seconds: float,
    batch: int = 1,
    clock: Callable[[], int] = time.perf_counter_ns,
    rest: Callable[[], object] = settle,
) -> dict[str, Timing]:
    """Time calls on `batch` of the `images` at once, repeated where they are fewer.

    Each runner is warmed up by a turn that does not count. Then, round after round, each has a turn, so that a noisy
    neighbour hits all alike; in another order each time, so that none always follows the same one. It ends, after a
    whole round, when `seconds` are spent or all medians are steady.
    """
    count = -(-len(images) // batch)
    batches = np.resize(images, (count, batch, *images.shape[1:]))
    turns: dict[str, list[list[int]]] = {name: [] for name in runners}
    order, shuffle = list(runners), random.Random(0).shuffle
    for run in runners.values():
        _turn(run, batches, 0, clock)
    rounds, end = 0, clock() + round(1e9 * seconds)
    while not rounds or (clock() < end and not all(map(_steady, turns.values()))):
        shuffle(order)
        for name in order:
            rest()
            turns[name].append(_turn(runners[name], batches, rounds * TURN, clock))
        rounds += 1
    return {name: _timing(list(chain(*turns[name]))) for name in runners}


def _turn(run: Answers, batches: np.ndarray, start: int, clock: Callable[[], int]) -> list[int]:
    """Nanoseconds of each call but the first two (1.5 and 1.15 times as slow), which wake threads and fill caches."""
    for first in range(2):
        run(batches[(start + first) % len(batches)])
    begin, times = clock(), []
    while len(times) < TURN and clock() - begin < LONGEST:
        images = batches[(start + len(times)) % len(batches)]
        called = clock()
        run(images)
        times.append(clock() - called)
    return times


def _steady(turns: list[list[int]]) -> bool:
    if len(turns) < ROUNDS:
        return False
    odd, even = (np.median(list(chain(*turns[first::2]))) for first in (0, 1))
    return bool(abs(odd - even) <= STEADY * min(odd, even))


def _timing(times: list[int]) -> Timing:
    p50, p95 = np.percentile(times, (50, 95)) / 1e6
    return Timing(float(p50), float(p95), len(times))


# --- the processor -----------------------------------------------------------------------------------------

INT8 = {"avx_vnni": "AVX VNNI", "avx512_vnni": "AVX-512 VNNI", "amx_int8": "AMX int8"}
INT8 |= {"dot": "NEON dotprod", "i8mm": "NEON i8mm"}
"""Instructions that multiply bytes and add the products, as torch calls them and as people do."""
FLAGS = {"avx2": "AVX2", "avx512_bf16": "AVX-512 bf16"} | INT8


class Cpu(msgspec.Struct, frozen=True):
    """The processor, how many of its cores may be used, and which of FLAGS it has; None where nobody tells."""

    name: str
    cores: int
    flags: list[str] | None

    @property
    def lacks_int8(self) -> bool:
        """Whether it is known to have none of the instructions that make int8 fast."""
        return self.flags is not None and INT8.keys().isdisjoint(self.flags)

    def __str__(self) -> str:
        told = ["instructions unknown"] if self.flags is None else [FLAGS[flag] for flag in self.flags]
        told += ["no VNNI, no dotprod"] if self.lacks_int8 else []
        return f"{self.name}, {self.cores} core{'s' * (self.cores > 1)}: {', '.join(told)}"


def cpu() -> Cpu:
    """This machine's."""
    said = getattr(torch.cpu, "get_capabilities", dict)()  # cpuinfo's words, on any system; not in every torch
    known = not FLAGS.keys().isdisjoint(said)
    return Cpu(environment()["processor"], cores(), [flag for flag in FLAGS if said.get(flag)] if known else None)
