"""Charts of a run and of a scorecard: learning curves, confusion matrix, reliability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightclass.evaluation.metrics import Bin, Scorecard, wilson
from weightclass.evaluation.page import BLUE, FAINT, GREEN, INK, PAPER, SPLITS, VERMILLION, box, fit, page, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

# --- learning curves ---------------------------------------------------------------------------------------


def curves(records: Sequence[Record], path: str | Path, title: str) -> None:
    """Loss, accuracy (%) and learning rate over epochs.

    A record is one finished epoch: `epoch` (from 1), any of `{train,validation,test}_{loss,accuracy}` (accuracy in
    0..1), and `lr`. Epochs without a value, or with a NaN, are left out of that curve.
    """
    width, height = 1750, 480
    with page(path, title, width, height) as figure:
        figure.set_layout_engine("constrained", rect=box(figure, 0, 0, width, height), w_pad=0.09)
        axes = figure.subplots(1, 3)
        _panel(axes[0], "loss", records, {f"{split}_loss": colour for split, colour in SPLITS.items()}, "{:.3f}")
        accuracies = {f"{split}_accuracy": colour for split, colour in SPLITS.items()}
        _panel(axes[1], "accuracy, %", records, accuracies, "{:.2f} %", scale=100)
        _panel(axes[2], "learning rate", records, {"lr": FAINT})


def _panel(
    axes: Axes, title: str, records: Sequence[Record], series: Mapping[str, str], form: str = "", scale: float = 1
) -> None:
    """Draw the curve of each key in its colour; with `form`, its split and last value stand at its end."""
    from matplotlib.ticker import MaxNLocator

    ends: list[tuple[float, str, str]] = []
    for key, colour in series.items():
        points = [(r["epoch"], scale * r[key]) for r in records if r.get(key) is not None and math.isfinite(r[key])]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o" if len(points) <= 12 else None, markersize=3.5)
        if form and points:
            axes.plot(*points[-1], "o", color=colour, markersize=4.5, clip_on=False)
            ends.append((points[-1][1], f"{key.partition('_')[0]}\n{form.format(points[-1][1])}", colour))
    last = max((r["epoch"] for r in records), default=1)
    axes.set(title=title, xlabel="epoch", xlim=(1, last) if last > 1 else (0.5, 1.5))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    # Beside the right edge, where a label covers neither a curve nor another label.
    heights = [float(axes.transLimits.transform((1, value))[1]) for value, _, _ in ends]
    for height, (_, text, colour) in zip(spread(heights, 0.14), ends, strict=True):
        axes.annotate(text, (1, height), (7, 0), "axes fraction", "offset points", color=colour, va="center")


def spread(places: Sequence[float], gap: float, low: float = 0.05, high: float = 0.95) -> list[float]:
    """`places` pushed up, then down, until they stand in their order, `gap` apart and within `low`..`high`."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for i in order:
        moved[i] = low = max(low, moved[i])
        low += gap
    for i in reversed(order):
        moved[i] = high = min(high, moved[i])
        high -= gap
    return moved


# --- confusion matrix --------------------------------------------------------------------------------------


def confusion(card: Scorecard, path: str | Path, title: str) -> None:
    """Row-normalised heat map of the errors. The right answers on the diagonal are grey: they would drown the rest.

    Counts are written into the cells up to 20 classes, names at the axes up to 120.
    """
    counts = np.array(card.confusion)
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.fill_diagonal(shares, np.nan)
    font = 8 if classes <= 20 else 6
    names = [fit(name, 25 * font, font) for name in card.classes] if classes <= 120 else []
    side = _side(classes)
    name_width = round(max((text_width(name, font) for name in names), default=36)) + 8
    upright = bool(names) and name_width > side / classes
    left, bottom = 44 + name_width, 66 + (name_width if upright else 0)
    with page(path, title, left + side + 130, side + bottom + 12) as figure:
        axes = figure.add_axes(box(figure, left, bottom, side, side))
        scale = figure.add_axes(box(figure, left + side + 24, bottom, 22, min(side, 600)))
        _heat_map(figure, axes, scale, shares)
        axes.set_xlabel("predicted" if names else "predicted class, by number")
        axes.set_ylabel("true" if names else "true class, by number")
        if names:
            axes.set_xticks(range(classes), names, fontsize=font, color=INK, rotation=90 if upright else 0)
            axes.set_yticks(range(classes), names, fontsize=font, color=INK)
        if classes <= 20:
            _write_counts(axes, counts, shares)


def _side(classes: int) -> int:
    """Pixels of a heat map with room for the counts (up to 20 classes), the names (up to 120), or just the cells."""
    if classes <= 20:
        return min(max(420, 110 * classes), 1400)
    return 19 * classes if classes <= 120 else max(1400, 2 * classes)


def _heat_map(figure: Figure, axes: Axes, scale: Axes, shares: np.ndarray) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    shades = LinearSegmentedColormap.from_list("errors", [PAPER, "#f8c9a8", VERMILLION, "#5c1a00"])
    shades = shades.with_extremes(bad="#dfe5ea")
    # A square-root scale: a confusion a quarter as frequent as the worst is still half as strong.
    norm = PowerNorm(0.5, 0, _darkest(shares))
    image = axes.imshow(shares, cmap=shades, norm=norm, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set(visible=True, color="#dfe5ea")
    bar = figure.colorbar(image, cax=scale, ticks=MaxNLocator(4), format=FuncFormatter(lambda x, _: f"{100 * x:g} %"))
    bar.set_label("share of the true class")
    scale.grid(False)
    scale.spines[:].set_visible(False)


def _darkest(shares: np.ndarray) -> float:
    """The share with the darkest shade; 5 % at least, so that a nearly perfect network looks nearly perfect."""
    return max(0.05, float(np.nanmax(shares)))


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    dark = 0.4 * _darkest(shares)
    for (row, column), count in np.ndenumerate(counts):
        right = row == column
        colour = PAPER if shares[row, column] > dark else INK
        if count or right:
            weight = "bold" if right else "normal"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=7.5, color=colour, fontweight=weight)


# --- reliability -------------------------------------------------------------------------------------------


def reliability(card: Scorecard, path: str | Path, title: str) -> None:
    """Accuracy over confidence, bin by bin, the gap between them coloured; below it, how many images a bin holds.

    The mean of the gaps, each weighing as much as its bin has images, is the ECE. A whisker is Wilson's 95 % interval
    of a bin's accuracy.
    """
    side, strip, left, bottom = 640, 110, 84, 62
    width = 100 / len(card.bins)
    filled = [((i + 0.5) * width, part) for i, part in enumerate(card.bins) if part.n]
    with page(path, title, left + side + 30, bottom + strip + 16 + side + 60) as figure:
        axes = figure.add_axes(box(figure, left, bottom + strip + 16, side, side))
        below = figure.add_axes(box(figure, left, bottom, side, strip))
        _gaps(axes, filled, 0.9 * width)
        _headline(axes, card)
        for x, part in filled:
            below.bar(x, part.n, 0.9 * width, color="#b9c4cd")
            below.annotate(f"{part.n:,}", (x, part.n), (0, 2), textcoords="offset points", ha="center", fontsize=6)
        most = max(part.n for _, part in filled)
        below.set(xlim=(0, 100), ylim=(0, 1.2 * most), yticks=[], xlabel="confidence, %", ylabel="images")
        below.spines["left"].set_visible(False)


def _gaps(axes: Axes, bins: Sequence[tuple[float, Bin]], width: float) -> None:
    """At each place a line as high as the bin's accuracy in %, and between that and its mean confidence the gap."""
    for x, part in bins:
        accuracy, confidence = part.accuracy or 0.0, part.confidence or 0.0
        low, high = 100 * min(accuracy, confidence), 100 * max(accuracy, confidence)
        axes.bar(x, low, width, color=BLUE, alpha=0.75)
        axes.bar(x, high - low, width, low, color=VERMILLION if confidence > accuracy else GREEN, alpha=0.6)
        interval = wilson(round(part.n * accuracy), part.n)
        axes.plot([x, x], [100 * interval.lo, 100 * interval.hi], color=INK, linewidth=0.7)
        axes.plot([x - 0.45 * width, x + 0.45 * width], 2 * [100 * accuracy], color=INK, clip_on=False)
    axes.plot([0, 100], [0, 100], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy, %")
    axes.tick_params(labelbottom=False)
    axes.grid(visible=False, axis="x")


def _headline(axes: Axes, card: Scorecard) -> None:
    """Above the chart the ECE, and what the colours mean; first the one that is true on average."""
    lean = sum(part.n * ((part.confidence or 0.0) - (part.accuracy or 0.0)) for part in card.bins) / card.n
    (first, tint), other = sorted([("overconfident", VERMILLION), ("underconfident", GREEN)], reverse=lean < 0)
    mean = f"{first} by {100 * abs(lean):.2f} points on average"
    x = -70.0
    for text, colour, size in ((f"ECE {100 * card.ece:.2f} %", INK, 11), (mean, tint, 8), (*other, 8)):
        axes.annotate(text, (0, 1), (x, 30), "axes fraction", "offset pixels", color=colour, fontsize=size)
        x += text_width(text, size) + 24
