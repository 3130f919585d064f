"""Times are fair: warm-ups do not count, noise hits all alike, and nobody is timed while another's threads spin."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightclass.edge import latency
from weightclass.edge.latency import ROUNDS, TURN, Cpu, cpu, measure, settle

MS = 1_000_000
IMAGES = np.arange(5 * 3 * 2 * 2, dtype=np.uint8).reshape(5, 3, 2, 2)


@dataclass
class World:
    """A clock that only runs while somebody computes, and a diary of who was asked for what."""

    now: int = 0
    asked: list[str] = field(default_factory=list)
    given: list[np.ndarray] = field(default_factory=list)

    def clock(self) -> int:
        return self.now

    def rest(self) -> None:
        self.asked.append("rest")

    def runner(self, name: str, cost: Callable[[int], float]) -> Callable[[np.ndarray], np.ndarray]:
        """Takes `cost(calls before)` milliseconds."""

        def run(images: np.ndarray) -> np.ndarray:
            self.now += round(MS * cost(self.asked.count(name)))
            self.asked.append(name)
            self.given.append(images)
            return images

        return run

    def turns(self) -> list[tuple[str, int]]:
        """After the warm-up: whose turns these were, with the calls of each; a turn begins with a rest."""
        turns = " ".join(self.asked[self.asked.index("rest") :]).split("rest")[1:]
        return [(turn.split()[0], len(turn.split())) for turn in turns]


def test_medians_are_those_of_the_counted_calls() -> None:
    world = World()
    runners = {"a": world.runner("a", lambda call: 1), "b": world.runner("b", lambda call: 2 + call % 3)}
    timed = measure(runners, IMAGES, 60, clock=world.clock, rest=world.rest)
    assert (timed["a"].p50, timed["a"].p95) == (1, 1)
    assert (timed["b"].p50, timed["b"].p95) == (3, 4)


def test_warm_up_and_waking_do_not_count() -> None:
    world = World()
    slow = {*range(2 + TURN), *(turn * (2 + TURN) + first for turn in range(99) for first in (0, 1))}
    timed = measure({"a": world.runner("a", lambda n: 5 if n in slow else 1)}, IMAGES, 60, clock=world.clock)["a"]
    assert timed.p95 == 1


def test_every_format_has_its_turn_in_every_round_after_a_rest_and_follows_now_one_now_another() -> None:
    world = World()
    runners = {name: world.runner(name, lambda call: 1) for name in "abc"}
    measure(runners, IMAGES, 60, clock=world.clock, rest=world.rest)
    turns = world.turns()
    assert {calls for _, calls in turns} == {TURN + 2}
    names = "".join(name for name, _ in turns)
    rounds = [names[start : start + 3] for start in range(0, len(names), 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 3


def test_a_noisy_neighbour_hits_all_alike() -> None:
    world = World()

    def cost(alone: float) -> Callable[[int], float]:
        return lambda call: alone * (3 if world.now // (200 * MS) % 2 else 1)  # every other fifth of a second

    runners = {name: world.runner(name, cost(alone)) for name, alone in (("a", 2), ("b", 4))}
    timed = measure(runners, IMAGES, 20, clock=world.clock)
    assert timed["b"].p50 / timed["a"].p50 == pytest.approx(2, rel=0.05)
    assert timed["a"].p95 == 6


def test_steady_medians_end_it_early_and_restless_ones_when_the_time_is_spent() -> None:
    world = World()
    assert measure({"a": world.runner("a", lambda n: 1)}, IMAGES, 60, clock=world.clock)["a"].n == TURN * ROUNDS
    world = World()
    growing = world.runner("a", lambda n: 1 + n // (2 + TURN) % 2)  # every other turn takes twice the time
    measure({"a": growing}, IMAGES, 3, clock=world.clock)
    assert 3000 <= world.now / MS < 3200


def test_a_slow_format_has_shorter_turns() -> None:
    world = World()
    timed = measure({"a": world.runner("a", lambda n: 1000)}, IMAGES, 1, clock=world.clock, rest=world.rest)
    assert timed["a"].n == 1
    assert world.turns() == [("a", 3)]


@given(st.integers(1, 12), st.integers(1, 70))
def test_batches_hold_all_images_in_turn(count: int, batch: int) -> None:
    world, images = World(), np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    measure({"a": world.runner("a", lambda n: 1)}, images, 60, batch, world.clock, world.rest)
    assert {given.shape for given in world.given} == {(batch, 1, 1, 1)}
    assert set(np.concatenate(world.given).ravel().tolist()) == set(range(count))
    assert all(given.flags.c_contiguous for given in world.given)


def test_real_sleepers_take_their_time() -> None:
    def sleeper(seconds: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda images: (time.sleep(seconds), images)[1]

    timed = measure({"fast": sleeper(0.001), "slow": sleeper(0.01)}, IMAGES, 0.3)
    assert 1 <= timed["fast"].p50 < timed["slow"].p50
    assert timed["slow"].p50 >= 10


@pytest.mark.parametrize(("spinning", "waited"), [(0, 1), (4, 5), (10**6, 100)])
def test_settling_waits_for_threads_that_spin_but_not_for_ever(
    spinning: int, waited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    fake = SimpleNamespace(
        monotonic=lambda: sum(slept),
        process_time=lambda: 0.002 * min(len(slept), spinning),
        sleep=slept.append,
    )
    monkeypatch.setattr(latency, "time", fake)
    settle()
    assert len(slept) == pytest.approx(waited, abs=1 if spinning > 100 else 0)


INTEL = {"architecture": "x86_64", "avx2": True, "avx512_vnni": True, "amx_int8": False, "avx512_bf16": False}
ZEN2 = {"architecture": "x86_64", "avx2": True, "avx_vnni": False, "avx512_vnni": False}
ARM = {"architecture": "arm64", "neon": True, "dot": True, "i8mm": False, "bf16": True}


@pytest.mark.parametrize(
    ("capabilities", "flags", "lacks", "told"),
    [
        (INTEL, ["avx2", "avx512_vnni"], False, "Chip, 2 cores: AVX2, AVX-512 VNNI"),
        (ZEN2, ["avx2"], True, "Chip, 2 cores: AVX2, no VNNI, no dotprod"),
        (ARM, ["dot"], False, "Chip, 2 cores: NEON dotprod"),
        ({"architecture": "riscv"}, None, False, "Chip, 2 cores: instructions unknown"),
        (None, None, False, "Chip, 2 cores: instructions unknown"),
    ],
)
def test_the_processor(
    capabilities: dict[str, object] | None,
    flags: list[str] | None,
    lacks: bool,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # as in an older torch
    if capabilities is not None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(latency, "environment", lambda: {"processor": "Chip"})
    monkeypatch.setattr(latency, "cores", lambda: 2)
    assert cpu() == Cpu("Chip", 2, flags)
    assert cpu().lacks_int8 is lacks
    assert str(cpu()) == told


def test_this_processor_has_a_name() -> None:
    assert cpu().name
    assert cpu().cores >= 1
