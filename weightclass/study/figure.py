"""A study's figures: accuracy and loss over epochs here, accuracy against size and compute in scatter.py.

Errors and losses are on log scales, which show the first epochs and yet tell the last ones apart. A row keeps its
colour in every picture; its name stands beside the right edge.
"""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from weightclass.evaluation.charts import spread
from weightclass.evaluation.page import FAINT, box, fit, page
from weightclass.study import scatter
from weightclass.study.scatter import Ends
from weightclass.study.sheet import Line, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, LEFT, WIDE, BELOW, STEP = 1750, 88, 1080, 150, 50  # pixels: the page, its axes, and from name to name
Curve = tuple[np.ndarray, np.ndarray]
"""A row's epochs [E], and its seeds' errors in % or losses there [S, E]."""


def save(sheet: Sheet, folder: Path) -> list[Path]:
    """Draw the pictures that the sheet has numbers for: `<stem>-{accuracy,loss,params,pflops}.png`."""
    paths = {what: folder / f"{sheet.stem}-{what}.png" for what in sheet.titles}
    return [path for what, path in paths.items() if _picture(sheet, what, path, sheet.titles[what])]


def _picture(sheet: Sheet, what: str, path: Path, title: str) -> bool:
    """Axes with the rows' names on their right and notes below; False where there is nothing to draw."""
    against = what in scatter.AXES
    rows: dict[int, Any] = scatter.points(sheet, what) if against else curves(sheet, what)
    if not rows:
        return False
    tall = max(640, STEP * len(rows))
    with page(path, f"PILOT, {sheet.pilot}: {title}" if sheet.pilot else title, WIDTH, BELOW + tall) as figure:
        axes = figure.add_axes(box(figure, LEFT, BELOW, WIDE, tall))
        ends, notes = (scatter.draw if against else _draw)(axes, sheet, what, rows)
        _names(axes, sheet, ends)
        missing = "; ".join(line.label for row, line in enumerate(sheet.lines) if row not in rows)
        lines = wrap(f"{notes} Nothing yet of: {missing}." if missing else notes, 180, max_lines=3, placeholder=" …")
        figure.text(*box(figure, LEFT, BELOW - 66, 0, 0)[:2], "\n".join(lines), color=FAINT, va="top")
    return True


def _names(axes: Axes, sheet: Sheet, ends: Ends) -> None:
    """Each row's name and number right of the axes, with a line to its point."""
    axes.autoscale_view()
    places = axes.transAxes.inverted().transform(axes.transData.transform([(x, y) for x, y, _ in ends.values()]))
    gap = STEP / axes.bbox.height
    heights = spread(places[:, 1].clip(0, 1).tolist(), gap, gap / 2, 1 - gap / 2)
    for (row, (_, _, said)), (x, y), height in zip(ends.items(), places, heights, strict=True):
        look = scatter.look(row)
        style: dict[str, Any] = {"color": look["color"], "transform": axes.transAxes, "clip_on": False}
        axes.plot([x, 1], [y, y], ls=(0, (1, 2)), lw=0.7, **style)
        axes.plot([1.01, 1.04, 1.07], [y, height, height], ls=look["ls"], lw=1.1, **style)
        text = f"{fit(sheet.lines[row].label, 480, 8)}\n{said}"
        axes.annotate(text, (1.08, height), xycoords="axes fraction", va="center")


def curves(sheet: Sheet, what: str) -> dict[int, Curve]:
    """By row, of those that have any."""
    found = {row: _curve(line, f"{sheet.watched}_{what}") for row, line in enumerate(sheet.lines)}
    return {row: curve for row, curve in found.items() if len(curve[0])}


def _curve(line: Line, key: str) -> Curve:
    """Of the finished runs, or of all while there are none, where all have a finite value."""
    runs = [run for run in line.runs if run.result and run.curve] or line.runs
    finite = [[r for r in run.curve if r.get(key) is not None and math.isfinite(r[key])] for run in runs]
    seeds = [{r["epoch"]: r[key] for r in records} for records in finite if records]
    epochs = sorted(set.intersection(*map(set, seeds))) if seeds else []
    values = np.array([[seed[epoch] for epoch in epochs] for seed in seeds])
    errors = 100 - 100 * values if key.endswith("accuracy") else values
    return np.array(epochs), np.maximum(errors, 0.001)  # there is no 0 on a log scale


def _draw(axes: Axes, sheet: Sheet, what: str, rows: dict[int, Curve]) -> tuple[Ends, str]:
    """Means over the seeds, in bands from the lowest to the highest; the ends to name, and what is to know."""
    from matplotlib.ticker import MaxNLocator

    ends: Ends = {}
    for row, (epochs, values) in reversed(rows.items()):  # the first row lies on top
        look, mean = scatter.look(row), values.mean(0)
        axes.fill_between(epochs, values.min(0), values.max(0), color=look["color"], alpha=0.16, linewidth=0)
        axes.plot(epochs, mean, **look, lw=1.2, ms=4, markevery=None if len(epochs) <= 12 else [-1], clip_on=False)
        ends[row] = epochs[-1], mean[-1], f"{100 - mean[-1]:.2f} %" if what == "accuracy" else f"{mean[-1]:.3f}"
    scatter.log_axis(axes, what, sheet.watched)
    axes.set(xlabel="epoch", xmargin=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    notes = scatter.mean_of([len(values) for _, values in rows.values()], "bands: from the lowest to the highest")
    return ends, notes + " The test set was watched at every epoch, and chose nothing." * (sheet.watched == "test")
