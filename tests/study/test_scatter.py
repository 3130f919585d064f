"""Accuracy against size and compute: points, bars and rings where the numbers are, published networks with names."""

from __future__ import annotations

from itertools import combinations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import BboxBase

from tests.reference.sheets import sheet
from weightclass.study import scatter
from weightclass.study.sheet import Sheet

replace = msgspec.structs.replace


def axes() -> Axes:
    figure = Figure(figsize=(10, 6), dpi=100)
    FigureCanvasAgg(figure)
    return figure.add_axes((0.1, 0.1, 0.8, 0.8))


def draw(one: Sheet, what: str) -> tuple[Axes, scatter.Ends, str]:
    on = axes()
    return on, *scatter.draw(on, one, what, scatter.points(one, what))


def names(on: Axes) -> list[str]:
    return [text.get_text().strip() for text in on.texts]


def marks(on: Axes, row: int) -> set[tuple[float, float]]:
    """Ends of what is drawn in a row's colour."""
    lines = [np.array(line.get_data(), float) for line in on.lines if line.get_color() == scatter.look(row)["color"]]
    return {(round(float(line[0, -1]), 6), round(float(line[1, -1]), 6)) for line in lines}


@pytest.mark.parametrize(("what", "x"), [("params", 4_978_810), ("pflops", 106.2)])
def test_points_bars_and_rings(what: str, x: float) -> None:
    one = sheet(2, 3)
    accuracies = [100 * result.scorecard.accuracy for result in one.lines[0].results]
    error, bar = 100 - np.mean(accuracies), np.std(accuracies, ddof=1)
    on, ends, notes = draw(one, what)
    assert marks(on, 0) == {(x, round(float(y), 6)) for y in (error, 8.0, error - bar, error + bar)}
    assert ends[0] == (x, pytest.approx(error), f"{100 - error:.2f} ± {bar:.2f} %, published 92")
    assert "published" not in ends[1][2], "nobody printed one"
    assert "Mean of 3 seeds" in notes and "Rings" in notes
    assert (on.get_xscale(), on.get_yscale()) == ("log", "log") and on.yaxis_inverted()
    assert on.get_ylabel() == "test accuracy, % (errors on a log scale)"


@pytest.mark.parametrize("one", [sheet(2, 1, "10 epochs"), sheet(2, 1, split="validation")])
def test_pilots_and_validation_have_no_rings(one: Sheet) -> None:
    on, ends, notes = draw(one, "params")
    assert len(marks(on, 0)) == 1 and "published" not in ends[0][2] and "Rings" not in notes
    assert "One seed a row." in notes and "Grey: published test accuracies of networks trained in full." in notes


def test_rows_without_results_have_no_point() -> None:
    assert list(scatter.points(sheet(waiting=[(1, 0), (1, 1)], failed=[(0, 0)]), "pflops")) == [0, 2]


def test_the_budget_is_a_line_over_parameters() -> None:
    on, *_ = draw(sheet(1, 1), "params")
    assert "budget 5M" in names(on) and any(np.array_equal(line.get_xdata(), [5e6, 5e6]) for line in on.lines)
    assert "budget 5M" not in names(draw(sheet(1, 1), "pflops")[0])
    assert not [name for name in names(draw(sheet(1, 1, budget=""), "params")[0]) if "budget" in name]


def test_published_networks_stand_beside_results_on_cifar10() -> None:
    networks = {network.name: network for network in scatter.published()}
    assert len(networks) >= 11 and all(50 < n.accuracy < 100 and n.params < 5e6 for n in networks.values())
    assert set(networks) <= set(names(draw(sheet(1, 1), "params")[0]))
    assert {name for name in networks if networks[name].pflops} == set(names(draw(sheet(1, 1), "pflops")[0]))


def test_other_data_has_none() -> None:
    one = sheet(1, 1)
    [line], [run] = one.lines, one.lines[0].runs
    assert run.result
    card = replace(run.result.scorecard, per_class={"cat": run.result.scorecard.macro})
    other = replace(line, runs=(replace(run, result=replace(run.result, scorecard=card)),))
    on, _, notes = draw(replace(one, lines=(other,)), "pflops")
    assert names(on) == [] and "Grey" not in notes


def test_all_right_has_a_place() -> None:
    assert scatter._row(axes(), sheet(1), 0, 5e6, [100, 100]) == (5e6, 0.001, "100.00 ± 0.00 %")


def test_ticks_are_accuracies() -> None:
    on = axes()
    on.plot([1, 2], [60, 2.4])
    scatter.log_axis(on, "accuracy", "test")
    shown = [label.get_text() for label in on.get_yticklabels()]
    assert {"40", "50", "80", "90", "95", "97"} <= set(shown)


def test_no_two_rows_look_alike() -> None:
    assert len({str(scatter.look(row)) for row in range(14)}) == 14


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 600)), min_size=1, max_size=5, unique=True))
@settings(max_examples=20)
def test_names_are_clear_of_each_other(points: list[tuple[int, int]]) -> None:
    on = axes()
    on.set(xlim=(0, 1000), ylim=(0, 600))
    taken: list[BboxBase] = []
    for point in points:
        taken.append(scatter._name(on, point, "a network", taken))
        x, y = on.transData.transform(point)
        assert not taken[-1].contains(x, y), "upon its own point"
        assert on.bbox.count_contains(taken[-1].corners()) == 4
    assert not any(a.overlaps(b) for a, b in combinations(taken, 2))
