"""A search's table and figure: the recipe and the fronts always shown, nothing hidden unsaid, no label on another."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from msgspec.structs import replace
from rich.console import Console

from tests.reference.pictures import read
from tests.reference.searches import final, in_full, row, sheet
from weightclass.evaluation.page import page
from weightclass.search import front
from weightclass.search.sheet import COSTS, Sheet

MANY = sheet(90, 108, 2, limits={"params": "1M", "latency_ms": "6"})


def shown(told: Sheet, width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(front.table(told, narrow=width < 112))
    return out.getvalue()


def flat(text: str) -> str:
    return " ".join(text.split())


# --- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [120, 112, 80])
def test_a_terminal_as_wide_as_it_is(width: int) -> None:
    text = shown(sheet(final=final()), width)
    assert max(map(len, text.splitlines())) <= width
    for part in ("1. trial 2", "4. recipe", "1,1,1,3 x 36,58,92,148", "*695,591", "*85.8M", "70.10 +- 1.27", "+2.90"):
        assert part in text, part
    assert ("pool=avg(2)" in text) == (width > 80) and "model.blocks" not in text
    if width == 80:
        assert all(line.count("trial ") <= 1 for line in text.splitlines())
        assert len([line for line in text.splitlines() if "+-" in line and " x " in line]) == 9  # a line a trial


@pytest.mark.parametrize("width", [112, 80])
def test_finalists_come_first_and_have_a_column_of_their_own(width: int) -> None:
    told = in_full(sheet(final=final()), 0, 3, 5)
    text = shown(told, width)
    assert max(map(len, text.splitlines())) <= width
    assert told.best == told.rows[5]
    _, heads, rows, notes = front.cells(told)
    place = heads.index("in full (%)")
    assert [cells[0] for cells in rows[:4]] == [" 1. trial 5", " 2. trial 3", " 3. recipe", " 4. trial 2"]
    assert [cells[place] for cells in rows[:4]] == ["80.50 +- 1.10", "80.30 +- 1.10", "80.00 +- 1.11", "-"]
    assert [cells[-1] for cells in rows[:4]] == ["+0.50", "+0.30", "base", "-"]
    assert "In full: 3 of them after 40 epochs, on the same images." in notes[1]


@pytest.mark.parametrize("form", [shown, front.markdown])
def test_the_counts_and_what_the_numbers_are(form: Any) -> None:
    text = flat(form(sheet(final=final())))
    for part in (
        "Search from small-cpu: params under 701467, macs under 120M",
        "Trials: 20; 9 finished, 10 pruned, 1 failed (the loss is not finite at step 33: lower optimizer.lr).",
        "of 5,000 images held out, after 4 epochs",
        "these choose, and so they flatter the best",
        "Trial 2, trained in full (40 epochs): 84.12% of 10,000 test images (95 %: 83.39% to 84.82%).",
        "weightclass train small-cpu-found.toml",
    ):
        assert part in text, part


def test_reasons_are_told_once_and_briefly() -> None:
    some = [row(number, "failed", why=f"failed: {'x ' * 50}{number % 2}") for number in range(1, 9)]
    first = front.cells(sheet(rows=(row(0), *some)))[3][0]
    assert first.startswith("Trials: 9; 1 finished, 8 failed (x x") and first.endswith("...).") and len(first) < 220


def test_an_unfinished_search_says_so() -> None:
    told = sheet(2, 1, 0, opened=2, wanted=30)
    assert front.cells(told)[3][0] == "Trials: 5 of 30; 2 finished, 1 pruned, 2 not finished."
    assert "failed (" not in front.markdown(told)


def test_of_many_trials_the_best_the_recipe_and_every_front_are_shown() -> None:
    _, heads, rows, notes = front.cells(MANY)
    names = [cells[0].split(". ")[1] for cells in rows]
    ranked = [f"trial {each.number}" if each.number else "recipe" for each in MANY.done]
    assert names[: front.SHOWN] == ranked[: front.SHOWN]
    assert names == [name for name in ranked if name in names]
    for cost, head in zip(COSTS, ("params", "MACs", "ms"), strict=True):
        expected = {f"trial {each.number}" for each in MANY.front(cost)}
        assert {cells[0].split(". ")[1] for cells in rows if "*" in cells[heads.index(head)]} == expected
    assert names.count("recipe") == 1 and f"({90 - len(rows)} not shown)" in notes[0]
    assert not any("not shown" in note for note in front.cells(sheet())[3])


@pytest.mark.parametrize("state", ["failed", "open"])
def test_without_the_recipe_there_is_no_difference(state: str) -> None:
    told = sheet(rows=(row(0, state), row(3), row(4)))
    _, heads, rows, notes = front.cells(told)
    assert rows[-1][0] == f"{state} recipe" and "points" not in heads and "Points" not in notes[1]
    assert [cells[0] for cells in front.cells(sheet(rows=(row(3),)))[2]] == [" 1. trial 3"]


def test_columns_that_tell_nothing_are_left_out() -> None:
    _, heads, rows, _ = front.cells(sheet(rows=(row(0, ms=None),)))
    assert heads == ["trial", "network", "settings", "params", "MACs", "accuracy (%)"]
    assert rows[0][2] == "the recipe's"


@pytest.mark.parametrize("form", [shown, front.markdown])
def test_nothing_has_finished(form: Any, tmp_path: Path) -> None:
    assert "Trials: 0; none yet." in form(sheet(0, 0, 0))
    assert "Trials: 2; 2 pruned." in form(sheet(0, 2, 0, rows=(row(1, "pruned"), row(2, "pruned"))))
    front.save(sheet(0, 0, 0), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"trials.md", "trials.csv"}


def test_difference_is_in_points() -> None:
    told = sheet(rows=(row(0, accuracy=0.5), row(1, accuracy=0.5125), row(2, accuracy=0.0)))
    points = {cells[0][4:]: cells[-1] for cells in front.cells(told)[2]}
    assert points == {"trial 1": "+1.25", "recipe": "base", "trial 2": "-50.00"}


@settings(max_examples=40)
@given(st.text(st.sampled_from("ab 1|&_#\\[]*~<>`$.-é"), min_size=1, max_size=12))
def test_no_name_breaks_the_markdown(name: str) -> None:
    told = sheet(2, 0, 1, recipe=name)
    told = replace(told, rows=tuple(replace(each, network=name, why=name) for each in told.rows))
    lines = [line for line in front.markdown(told).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {9} and len(lines) == 4


def test_csv_is_plain_numbers() -> None:
    records = list(csv.DictReader(io.StringIO(front.csv(sheet()))))
    assert len(records) == 20 and records[2]["params"] == "695591" and records[2]["accuracy"] == "0.701"
    assert records[2]["settings"].startswith("model.blocks=1,1,1,3; model.pool=avg(2); ")
    assert (records[19]["state"], records[19]["accuracy"], records[19]["interval"]) == ("failed", "", "")


# --- the figure --------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn; the files stay empty, which is quicker."""
    figures: list[Figure] = []

    @contextmanager
    def kept(*how: Any) -> Iterator[Figure]:
        with page(*how) as one:
            yield one
        figures.append(one)

    monkeypatch.setattr(front, "page", kept)
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    return figures


def picture(drawn: list[Figure], told: Sheet, folder: Path) -> list[Axes]:
    front.draw(told, folder / "front.png")
    return drawn[-1].axes


def named(axes: Axes, label: str) -> np.ndarray:
    """[2, N] of the line of that label."""
    [line] = [line for line in axes.lines if str(line.get_label()).startswith(label)]
    return np.array(line.get_data(), float)


def test_every_trial_is_where_its_numbers_are(drawn: list[Figure], tmp_path: Path) -> None:
    told = sheet()
    panels = picture(drawn, told, tmp_path)
    assert [axes.get_xlabel().split()[0] for axes in panels] == ["parameters", "MACs", "ms"]
    for axes, cost in zip(panels, COSTS, strict=True):
        points = {(getattr(each, cost), round(100 - 100 * (each.accuracy or 0), 9)) for each in told.done}
        assert {(x, round(y, 9)) for x, y in named(axes, "finished").T} == points
        best = told.best
        assert best and named(axes, "best: trial 2, 70.10 ± 1.27 %")[:, 0].tolist() == [
            getattr(best, cost),
            pytest.approx(29.9),
        ]
        assert named(axes, "recipe, 67.20")[1, 0] == pytest.approx(32.8)
        low, high = axes.get_xlim()
        assert all(low < x < high for x, _ in points) and axes.get_yscale() == "log" and axes.yaxis_inverted()
    assert panels[0].get_ylabel() == "validation accuracy, % (errors on a log scale)"


def test_the_front_is_a_step_line(drawn: list[Figure], tmp_path: Path) -> None:
    told = sheet()
    axes = picture(drawn, told, tmp_path)[1]
    x, y = named(axes, "front")
    assert x[1:-1].tolist() == [each.macs for each in told.front("macs")] and x[-1] == axes.get_xlim()[1]
    assert y[0] == axes.get_ylim()[0] and (np.diff(y) <= 0).all()


def test_limits_are_lines_where_they_are_near(drawn: list[Figure], tmp_path: Path) -> None:
    panels = picture(drawn, sheet(limits={"params": "1M", "macs": "9G", "latency_ms": "6.5"}), tmp_path)
    lines = [[line.get_xdata() for line in axes.lines if line.get_label() == "limit"] for axes in panels]
    assert lines == [[[1_000_000, 1_000_000]], [], [[6.5, 6.5]]]
    assert "limit" in [text.get_text() for text in drawn[-1].legends[0].get_texts()]
    picture(drawn, sheet(limits={"bytes_fp32": "4MB"}), tmp_path)
    assert "limit" not in [text.get_text() for text in drawn[-1].legends[0].get_texts()]


def test_pruned_trials_are_small_and_never_below_the_edge(drawn: list[Figure], tmp_path: Path) -> None:
    early, late, lost = row(1, "pruned", epochs=1), row(2, "pruned"), row(3, "pruned", accuracy=0.0)
    late = replace(late, epochs=3)
    params, _, ms = picture(drawn, sheet(rows=(row(0), row(4), early, late, lost)), tmp_path)
    grey = {float(line.get_xdata()[0]): line for line in params.lines if line.get_color() == front.GREY}  # type: ignore[index]
    assert len(grey) == 3 and not [line for line in ms.lines if line.get_color() == front.GREY]
    assert grey[early.params].get_markersize() < grey[late.params].get_markersize() < 4.5
    assert grey[lost.params].get_ydata() == [params.get_ylim()[0]]


SHAPES = {
    "one trial": sheet(1, 0, 0),
    "one trial, no interval, all right": sheet(rows=(row(0, accuracy=1.0, interval=None),)),
    "equal params": sheet(rows=tuple(replace(each, params=701_000) for each in sheet().rows)),
    "far apart": sheet(rows=tuple(row(i, params=10 ** (3 + i), macs=10 ** (5 + i), ms=0.03 * 3**i) for i in range(5))),
    "no milliseconds": sheet(rows=(row(0, ms=None), row(1, ms=None))),
    "200 trials": MANY,
}


@pytest.mark.parametrize("told", SHAPES.values(), ids=SHAPES)
def test_no_label_is_on_another(drawn: list[Figure], tmp_path: Path, told: Sheet) -> None:
    for axes in picture(drawn, told, tmp_path):
        numbers = [text for text in axes.texts if isinstance(text, Annotation) and text.get_visible()]
        assert numbers and numbers[0].get_text() == str(told.front("params")[-1].number)
        boxes = [text.get_window_extent() for text in numbers]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        ticks = [
            label
            for label in axes.get_xticklabels()
            if axes.get_xlim()[0] <= label.get_position()[0] <= axes.get_xlim()[1]
        ]
        assert len(ticks) >= 3
        extents = [label.get_window_extent() for label in ticks]
        assert not any(one.overlaps(other) for one, other in combinations(extents, 2))
        assert axes.get_xlim()[1] / axes.get_xlim()[0] > 1.05 or axes.get_xlim()[0] < 0


def test_files(tmp_path: Path) -> None:
    front.save(sheet(3, 1, 0), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"trials.md", "trials.csv", "front.png"}
    assert read(tmp_path / "front.png").shape[1] == front.LEFT + 3 * front.SIDE
