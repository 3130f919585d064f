"""Accuracy against parameters or the training's compute: a study's rows among published networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from itertools import product
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import msgspec

from weightclass.config import parse_quantity
from weightclass.data.cifar import CIFAR10
from weightclass.evaluation.page import BLUE, FAINT, GREEN, INK, VERMILLION
from weightclass.study.sheet import Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import BboxBase

AXES = {"params": "parameters", "pflops": "training compute, PFLOPs"}
COLOURS = (BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", INK)  # Okabe and Ito's, less the pale yellow
GREY = "#a3a3a3"
# Where a published network's name may begin or end: pixels right of its point and above it, the nearest first.
PLACES = sorted(product((9, -9, 30, -30, 60, -60, 90, -90), range(-120, 121, 12)), key=lambda place: math.hypot(*place))
Points = dict[int, tuple[float, list[float]]]
"""By row its parameters or PFLOPs, and the accuracies in % of its seeds."""
Ends = dict[int, tuple[float, float, str]]
"""By row the point that is named beside the axes, in data coordinates, and what is said of it."""


class Network(msgspec.Struct, frozen=True):
    """A published network, trained on CIFAR-10 alone: `accuracy` in % of the test set, `pflops` of its training."""

    name: str
    params: int
    accuracy: float
    pflops: float | None = None


def published() -> list[Network]:
    """The networks of published.toml."""
    text = (resources.files("weightclass.study") / "published.toml").read_text(encoding="utf-8")
    return msgspec.toml.decode(text, type=dict[str, list[Network]])["networks"]


def look(row: int) -> dict[str, Any]:
    """How a row is drawn in every picture; from the eighth on with dashes and squares."""
    again = row >= len(COLOURS)
    return {"color": COLOURS[row % len(COLOURS)], "ls": "--" if again else "-", "marker": "s" if again else "o"}


def log_axis(axes: Axes, what: str, split: str) -> None:
    """The y-axis, of losses or of errors that read as accuracies: halving them is as far at 97 % as at 60 %."""
    from matplotlib.ticker import LogLocator

    accuracy = what == "accuracy"
    axes.set(yscale="log", ylabel=f"{split} {what}{', % (errors on' if accuracy else ' (on'} a log scale)")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 7, 8), numticks=99))
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 - y if accuracy else y:.4g}")
    axes.yaxis.set_inverted(accuracy)
    axes.minorticks_off()


def mean_of(seeds: Sequence[int], shown: str) -> str:
    """Of how many seeds a row's line or point is the mean, and what is shown of them."""
    low, high = min(seeds), max(seeds)
    return f"Mean of {low if low == high else f'{low} to {high}'} seeds; {shown}." if high > 1 else "One seed a row."


def points(sheet: Sheet, what: str) -> Points:
    """Of each row with finished runs the parameters or PFLOPs, and the accuracies in % of its seeds."""
    return {
        row: (
            line.params if what == "params" else line.results[0].train_pflops,
            [100 * result.scorecard.accuracy for result in line.results],
        )
        for row, line in enumerate(sheet.lines)
        if line.results
    }


def draw(axes: Axes, sheet: Sheet, what: str, rows: Points) -> tuple[Ends, str]:
    """Rows, budget and published networks; the ends to name, and what is to know."""
    from matplotlib.ticker import EngFormatter, LogLocator

    ends = {row: _row(axes, sheet, row, *point) for row, point in rows.items()}
    if what == "params" and sheet.budget:
        _budget(axes, sheet.budget)
    axes.set(xscale="log", xlabel=AXES[what], xmargin=0.1)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=99))
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if what == "params" else "{x:g}")
    log_axis(axes, "accuracy", sheet.split)
    notes = mean_of([len(accuracies) for _, accuracies in rows.values()], "bars: ± a standard deviation")
    rings = " Rings: the rows' published numbers." if sheet.comparable else ""
    return ends, notes + rings + _networks(axes, sheet, what)


def _row(axes: Axes, sheet: Sheet, row: int, x: float, accuracies: Sequence[float]) -> tuple[float, float, str]:
    """A point with its error bar, and its end; also a ring for the published number where it is comparable."""
    mean, printed = fmean(accuracies), sheet.lines[row].published if sheet.comparable else None
    bar = stdev(accuracies) if len(accuracies) > 1 else None
    y = max(100 - mean, 0.001)  # there is no 0 on a log scale
    axes.errorbar(x, y, bar, **look(row), ms=5, capsize=3.5, elinewidth=1.2, zorder=4)
    if printed is not None:
        axes.vlines(x, y, 100 - printed, color=look(row)["color"], linewidth=0.8)
        axes.plot(x, 100 - printed, **look(row), fillstyle="none", ms=8)
    said = "" if printed is None else f", published {printed:g}"
    return x, y, f"{mean:.2f} %{said}" if bar is None else f"{mean:.2f} ± {bar:.2f} %{said}"


def _budget(axes: Axes, budget: str) -> None:
    limit = parse_quantity(budget)
    axes.axvline(limit, color=INK, lw=0.8, ls=(0, (5, 3)), zorder=1)
    axes.text(limit, 0.01, f"budget {budget} ", transform=axes.get_xaxis_transform(), ha="right", fontsize=6.5)


def _networks(axes: Axes, sheet: Sheet, what: str) -> str:
    """Published networks as grey points with their names, and a note of it; none beside results on other data."""
    if any(result.scorecard.classes != list(CIFAR10.names) for line in sheet.lines for result in line.results):
        return ""
    named = {(getattr(net, what), 100 - net.accuracy): net.name for net in published() if getattr(net, what)}
    for point in named:
        axes.plot(*point, "o", color=GREY, ms=4.5, zorder=2)
    axes.autoscale_view()
    taken: list[BboxBase] = [line.get_window_extent().padded(2) for line in axes.lines]
    for point, name in named.items():
        taken.append(_name(axes, point, name, taken))
    return " Grey: published test accuracies of networks trained in full."


def _name(axes: Axes, point: tuple[float, float], name: str, taken: Sequence[BboxBase]) -> BboxBase:
    """Write `name` at the nearest of its places that is within the axes and clear of `taken`; returns its box."""
    x, y = axes.transData.transform(point)
    text = axes.text(x, y, name, transform=None, color=FAINT, fontsize=6.5, va="center")

    def box(place: tuple[int, int]) -> BboxBase:
        text.set(position=(x + place[0], y + place[1]), ha="left" if place[0] > 0 else "right")
        return text.get_window_extent()

    def clear(place: tuple[int, int]) -> bool:
        return axes.bbox.count_contains(box(place).corners()) == 4 and not box(place).count_overlaps(taken)

    across, up = best = next(filter(clear, PLACES), PLACES[0])
    if up:
        axes.plot([x, x + across], [y, y + up], color=GREY, lw=0.6, transform=None, zorder=1)
    return box(best)
