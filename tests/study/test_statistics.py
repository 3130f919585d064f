"""Statistics as by hand and as their plain twin; a missing run, one seed and equal differences pretend nothing."""

from __future__ import annotations

import math
import statistics
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.sheets import result, sheet
from weightclass.study.sheet import Run, Sheet
from weightclass.study.statistics import figures


def made(*accuracies: dict[int, float], **changed: Any) -> Sheet:
    """A row for each dictionary of seeds and accuracies in %; `changed` are fields of every result."""
    whole = sheet(len(accuracies), 0)
    rows = (
        tuple(
            Run(seed=seed, command="", folder="", result=result(one / 100, seed=seed, **changed))
            for seed, one in row.items()
        )
        for row in accuracies
    )
    lines = (msgspec.structs.replace(line, runs=runs) for line, runs in zip(whole.lines, rows, strict=True))
    return msgspec.structs.replace(whole, lines=tuple(lines))


def test_by_hand() -> None:
    base, row = figures(made({0: 91.0, 1: 91.2, 2: 91.3}, {0: 91.5, 1: 92.0, 2: 92.0}))
    assert base.difference is None and base.p is None
    assert row.mean == pytest.approx(91.8333333) and row.std == pytest.approx(0.2886751)
    # Differences 0.5, 0.8, 0.7: mean 2/3, deviation 0.1527525, t = 7.559289; with 2 degrees of freedom the share
    # beyond +-t is 1 - t / sqrt(t^2 + 2) = 1 - 7.559289 / sqrt(59.142857).
    assert row.difference == pytest.approx(2 / 3) and row.p == pytest.approx(0.0170546, abs=1e-6)
    assert base.gap == pytest.approx(91.1666667 - 92.0) and row.gap is None
    assert (base.minutes, base.pflops) == (pytest.approx(10.1), pytest.approx(106.2))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(8000, 9900), st.integers(8000, 9900)), min_size=2, max_size=2))
def test_two_seeds_as_the_plain_twin(counts: list[tuple[int, int]]) -> None:
    ours, theirs = ({seed: pair[side] / 100 for seed, pair in enumerate(counts)} for side in (0, 1))
    row = figures(made(theirs, ours))[1]
    points = [ours[seed] - theirs[seed] for seed in ours]
    assert row.mean == pytest.approx(statistics.mean(ours.values()))
    assert row.std == pytest.approx(statistics.stdev(ours.values()), abs=1e-9)
    assert row.difference == pytest.approx(statistics.mean(points), abs=1e-9)
    if (spread := statistics.stdev(points)) > 1e-6:  # Student's t with one degree of freedom is Cauchy's
        t = abs(statistics.mean(points)) / (spread / math.sqrt(2))
        assert row.p == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-6)
    else:
        assert row.p is None


def test_only_seeds_that_both_have_are_compared() -> None:
    _, row, foreign = figures(made({0: 90.0, 1: 91.0, 2: 95.0}, {1: 91.5, 0: 90.1, 3: 80.0}, {4: 99.0}))
    assert row.difference == pytest.approx(0.3)
    assert (row.finished_seeds, row.accuracies) == ((1, 0, 3), (91.5, 90.1, 80.0))
    assert (foreign.difference, foreign.p) == (None, None)


def test_rows_read_on_different_splits_are_not_compared() -> None:
    base, other = made({0: 90.0, 1: 91.0}), made({0: 90.0}, {0: 92.0, 1: 93.0}, split="validation")
    row = figures(msgspec.structs.replace(base, lines=(base.lines[0], other.lines[1])))[1]
    assert (row.split, row.difference, row.p) == ("validation", None, None)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_equal_differences_are_no_certainty(shift: float) -> None:
    row = figures(made({0: 91.1, 1: 92.4, 2: 93.5}, {0: 91.1 + shift, 1: 92.4 + shift, 2: 93.5 + shift}))[1]
    assert (row.difference, row.p) == (pytest.approx(shift), None)


def test_one_seed_has_no_spread_but_its_images_have() -> None:
    row = figures(made({0: 90.0}, {0: 92.0}))[1]
    assert (row.difference, row.std, row.p) == (pytest.approx(2), None, None)
    assert row.error == pytest.approx(196 * math.sqrt(0.92 * 0.08 / 10_000), rel=1e-3)


def test_missing_runs() -> None:
    rows = figures(sheet(3, 3, waiting={(0, 2), (1, 0), (1, 1), (1, 2)}, failed={(2, 0), (2, 1), (2, 2)}))
    assert [(row.finished, row.seeds, row.mean is None) for row in rows] == [(2, 3, False), (0, 3, True), (0, 3, True)]
    assert rows[2].notes[-1] == "seed 2 failed: out of memory at epoch 3" and len(rows[2].notes) == 4


def test_a_run_that_finished_at_its_second_attempt_has_not_failed() -> None:
    whole = made({0: 90.0})
    runs = tuple(msgspec.structs.replace(run, failure="out of memory") for run in whole.lines[0].runs)
    [row] = figures(msgspec.structs.replace(whole, lines=(msgspec.structs.replace(whole.lines[0], runs=runs),)))
    assert row.finished == 1 and row.notes == ()


def test_footnotes() -> None:
    first, assumed, noted = figures(sheet())
    assert first.notes == ("published: paper, Table 4 row 1",)
    assert assumed.notes == ("published: paper, Table 4 row 2", "assumed: optim.weight_decay=0.05")
    assert noted.notes == ("the notebook names another optimizer",)


def test_a_gap_is_to_what_was_published_of_the_test_set_in_full() -> None:
    assert figures(sheet())[0].gap is not None
    assert {row.gap for told in (sheet(pilot="10 epochs"), sheet(split="validation")) for row in figures(told)} == {
        None
    }


def test_rows_that_are_the_same_runs_say_so() -> None:
    first, same, other = figures(made({0: 90.0, 1: 91.0}, {0: 90.0, 1: 91.0}, {2: 92.0}))
    assert same.notes[-1] == f"equal settings: the same run as {first.label}"
    assert not any("same run" in note for note in (*first.notes, *other.notes))


def test_rows_computed_elsewhere_say_where() -> None:
    told = sheet()
    line = msgspec.structs.replace(
        told.lines[1], runs=made({0: 90.0}, computed_on="cuda, 2 threads, bfloat16").lines[0].runs
    )
    rows = figures(msgspec.structs.replace(told, lines=(told.lines[0], line, told.lines[2])))
    assert [row.notes[-1] for row in rows[:2]] == ["trained on cpu float32", "trained on cuda bfloat16"]


def test_where_it_was_computed_and_by_which_version() -> None:
    cuda, cpu = made({0: 90.0}, computed_on="cuda, 2 threads, bfloat16, compiled", version="0.0.9"), made({1: 90.0})
    line = msgspec.structs.replace(cuda.lines[0], runs=(*cuda.lines[0].runs, *cpu.lines[0].runs))
    [row] = figures(msgspec.structs.replace(cuda, lines=(line,)))
    assert row.computed_on == "cpu float32/cuda bfloat16"
    assert len(row.notes) == 1 and row.notes[0].startswith("run with version 0.0.9, not ")
