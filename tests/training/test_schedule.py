"""Rates equal torch's own schedulers, step for step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from weightclass.training.schedule import AnySchedule, Constant, Cosine, OneCycle, Step, rate

LR = 0.3


def ours(config: AnySchedule, per_epoch: int, epochs: int) -> list[float]:
    return [rate(config, LR, step, per_epoch, epochs) for step in range(per_epoch * epochs)]


def torchs(kind: Any, moves: int, **settings: Any) -> list[float]:
    """The rates of a torch scheduler that is stepped `moves` times."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR)
    scheduler = kind(optimizer, **settings)
    rates = []
    for _ in range(moves):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def exactly(expected: Any) -> Any:
    return pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("epochs", "eta_min"), [(1, 0.0), (7, 0.0), (30, 0.01), (300, 0.0)])
def test_cosine_once_an_epoch_as_in_the_paper(epochs: int, eta_min: float) -> None:
    theirs = torchs(lr_scheduler.CosineAnnealingLR, epochs, T_max=epochs, eta_min=eta_min)
    assert ours(Cosine(per="epoch", eta_min=eta_min), 3, epochs) == exactly(np.repeat(theirs, 3))


def test_cosine_at_every_step() -> None:
    theirs = torchs(lr_scheduler.CosineAnnealingLR, 60, T_max=60)
    assert ours(Cosine(), 6, 10) == exactly(theirs)


@settings(max_examples=40)
@given(cycles=st.integers(1, 40), length=st.integers(1, 6), per_epoch=st.integers(1, 6))
def test_every_cycle_starts_at_the_full_rate_and_is_the_first_again(cycles: int, length: int, per_epoch: int) -> None:
    cycle = ours(Cosine(), per_epoch, length)
    np.testing.assert_allclose(ours(Cosine(cycles=cycles), per_epoch, cycles * length), cycle * cycles, atol=1e-12)


def test_restarts() -> None:
    theirs = torchs(lr_scheduler.CosineAnnealingWarmRestarts, 30, T_0=10, eta_min=0.02)
    assert ours(Cosine(cycles=3, eta_min=0.02, per="epoch"), 4, 30) == exactly(np.repeat(theirs, 4))


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_step(per: Any) -> None:
    theirs = torchs(lr_scheduler.StepLR, 20, step_size=6, gamma=0.3)
    assert ours(Step(step_size=6, gamma=0.3, per=per), 5, 20) == exactly(np.repeat(theirs, 5))


def test_constant() -> None:
    assert set(ours(Constant(), 5, 4)) == {LR}


@pytest.mark.parametrize(("peak", "start", "end"), [(0.2, 0.0, 0.0), (0.5, 0.1, 0.01), (0.23, 1.0, 0.5)])
def test_one_cycle_is_two_straight_lines(peak: float, start: float, end: float) -> None:
    steps = np.arange(100)
    expected = LR * np.interp(steps / 100, [0, peak, 1], [start, 1, end])
    assert ours(OneCycle(peak=peak, start=start, end=end), 10, 10) == exactly(expected)


def test_one_cycle_is_torchs_but_for_its_last_step() -> None:
    """Torch lands on the end rate in its last step, we would in the step after it: 100 steps against its 101."""
    theirs = torchs(
        lr_scheduler.OneCycleLR,
        100,
        max_lr=LR,
        total_steps=101,
        pct_start=21 / 101,  # torch has the peak at step pct_start * total_steps - 1
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=10,
        final_div_factor=10,
    )
    assert ours(OneCycle(peak=0.2, start=0.1, end=0.01), 10, 10) == exactly(theirs)


@pytest.mark.parametrize("config", [Constant(warmup=2), Cosine(warmup=2), Step(warmup=2)])
def test_warm_up_is_torchs_linear(config: AnySchedule) -> None:
    theirs = torchs(lr_scheduler.LinearLR, 21, start_factor=1 / 21, total_iters=20)
    assert ours(config, 10, 5)[:21] == exactly(theirs)


def test_after_the_warm_up_the_schedule_has_the_rest() -> None:
    assert ours(Cosine(warmup=2), 10, 5)[20:] == exactly(ours(Cosine(), 10, 3))
    assert ours(Cosine(warmup=2, cycles=3, per="epoch"), 10, 8)[20:] == exactly(
        ours(Cosine(cycles=3, per="epoch"), 10, 6)
    )
    late = ours(Step(warmup=2, step_size=3), 10, 8)
    assert late[20:] == ours(Step(step_size=3), 10, 8)[20:]  # StepLR counts the epochs of the whole training


def test_half_an_epoch_of_warm_up_with_a_rate_an_epoch() -> None:
    rates = ours(Cosine(warmup=0.5, per="epoch"), 10, 3)
    assert rates[:5] == exactly([LR * (step + 1) / 6 for step in range(5)])
    assert rates[5:10] == [LR] * 5
    assert len(set(rates[10:20])) == 1


def test_the_rate_is_full_where_a_cycle_starts() -> None:
    """In floating point 3 / 22 * 22 can fall short of 3, and the rate would be that of the cycle before's end."""
    assert ours(Cosine(cycles=22), 1, 22) == [LR] * 22


KINDS = st.sampled_from([Constant, Cosine, Step, OneCycle])


@settings(max_examples=50)
@given(KINDS, st.floats(0, 12), st.sampled_from(["step", "epoch"]), st.integers(1, 50), st.integers(1, 10))
def test_rates_stay_between_zero_and_full(kind: Any, warmup: float, per: Any, per_epoch: int, epochs: int) -> None:
    warmup = 0.0 if kind is OneCycle else warmup
    rates = np.array(ours(kind(warmup=warmup, per=per), per_epoch, epochs))
    assert np.isfinite(rates).all()
    assert rates.min() >= 0
    assert rates.max() <= LR * (1 + 1e-12)
    assert (rates[: int(warmup * per_epoch)] > 0).all()
