"""The pictures of a run in one style: learning curves, confusions, what the network saw, what it got wrong.

Everything is measured in pixels, and every picture is written whole or not at all. matplotlib's object interface only:
no window, and no state that outlives the picture.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightclass.evaluation.metrics import Scorecard
from weightclass.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Line = tuple[str, str, str]  # a name that may be shortened, what follows it, the colour

DPI = 150
INK, FAINT, PAPER = "#222222", "#6f6f6f", "#ffffff"
# Okabe and Ito's palette, which colour-blind readers can tell apart. One split keeps one colour in every picture.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
SPLITS = {"train": BLUE, "validation": VERMILLION, "test": GREEN}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
    "font.size": 8,
    "text.color": INK,
    "text.usetex": False,
    "text.parse_math": False,  # a class may be called "$5"
    "axes.edgecolor": "#aaaaaa",
    "axes.labelcolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.unicode_minus": False,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@contextmanager
def page(path: str | Path, title: str, width: int, height: int) -> Iterator[Figure]:
    """A figure of `width` x `height` pixels below a strip with the title; written as a PNG when the block ends."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = textwrap.wrap(title, max(12, (width - 32) // 14)) or [""]
    strip = 24 + 28 * len(lines)
    total = height + strip
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a class name in a script that the font lacks
        hair = 1e-3  # without it floating point may lose the last pixel
        figure = Figure(((width + hair) / DPI, (total + hair) / DPI), DPI, facecolor=PAPER)
        FigureCanvasAgg(figure)
        figure.text(14 / width, 1 - 14 / total, "\n".join(lines), fontsize=10.5, fontweight="bold", va="top")
        yield figure
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI)
    atomic_write(Path(path), buffer.getvalue())


def _box(figure: Figure, left: float, bottom: float, width: float, height: float) -> tuple[float, float, float, float]:
    """A rectangle in pixels as matplotlib's fractions of the figure."""
    across, up = figure.bbox.size
    return left / across, bottom / up, width / across, height / up


def _width(text: str, points: float) -> float:
    """The pixels that `text` takes from left to right."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(STYLE["font.family"]))
    font.set_size(points, DPI)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        font.set_text(text)
    return font.get_width_height()[0] / 64


def _fit(name: str, room: float, points: float, tail: str = "") -> str:
    """`name` and `tail` in `room` pixels; the name is cut short where it must be."""
    if _width(name + tail, points) <= room:
        return name + tail
    cut = bisect_right(range(1, len(name)), room, key=lambda n: _width(f"{name[:n]}…{tail}", points))
    return f"{name[: max(1, cut)]}…{tail}"


# --- learning curves ---------------------------------------------------------------------------------------


def curves(records: Sequence[Record], path: str | Path, title: str) -> None:
    """Loss, accuracy (%) and learning rate over epochs.

    A record is one finished epoch: `epoch` (from 1), any of `{train,validation,test}_{loss,accuracy}` (accuracy in
    0..1), and `lr`. Epochs without a value, or with a NaN, are left out of that curve.
    """
    with_lr = any("lr" in record for record in records)
    width, height = 1750 if with_lr else 1250, 480
    with page(path, title, width, height) as figure:
        figure.set_layout_engine("constrained", rect=_box(figure, 0, 0, width, height), w_pad=14 / DPI)
        axes = figure.subplots(1, 3 if with_lr else 2)
        _panel(axes[0], "loss", records, {f"{split}_loss": colour for split, colour in SPLITS.items()}, "{:.3f}")
        accuracies = {f"{split}_accuracy": colour for split, colour in SPLITS.items()}
        _panel(axes[1], "accuracy, %", records, accuracies, "{:.2f} %", scale=100)
        if with_lr:
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
    last = max([r["epoch"] for r in records], default=1)
    axes.set(title=title, xlabel="epoch", xlim=(1, last) if last > 1 else (0.5, 1.5))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write (height, text, colour) beside the right edge, where a label covers neither a curve nor another label."""
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
    names = [_fit(name, 25 * font, font) for name in card.classes] if classes <= 120 else []
    side = _side(classes)
    name_width = round(max((_width(name, font) for name in names), default=36)) + 8
    upright = bool(names) and name_width > side / classes
    left, bottom = 44 + name_width, 66 + (name_width if upright else 0)
    with page(path, title, left + side + 130, side + bottom + 12) as figure:
        axes = figure.add_axes(_box(figure, left, bottom, side, side))
        scale = figure.add_axes(_box(figure, left + side + 24, bottom, 22, min(side, 600)))
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


# --- grids of images ---------------------------------------------------------------------------------------


def samples(images: Tensor, labels: Sequence[str], path: str | Path, title: str) -> None:
    """The first 64 of `images` [n, C, H, W], uint8 or float (also normalised), each with its label below."""
    _grid(images[:64], [[(label, "", FAINT)] for label in labels[:64]], path, title)


def mistakes(
    images: Tensor,
    truth: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float] | Tensor,
    path: str | Path,
    title: str,
) -> None:
    """The most confident wrong answers, 40 at most, worst first: the answer and its confidence in 0..1, then the truth.

    `images` [n, C, H, W], uint8 or float; may be a whole test set, of which only the mistakes are drawn.
    """
    wrong = [i for i, (said, true) in enumerate(zip(predicted, truth, strict=True)) if said != true]
    wrong = sorted(wrong, key=lambda i: -float(confidence[i]))[:40]
    texts = [
        [(predicted[i], f" ({float(confidence[i]):.0%})", VERMILLION), (f"is {truth[i]}", "", FAINT)] for i in wrong
    ]
    _grid(images[wrong], texts, path, title if wrong else f"{title}: no mistakes among {len(truth):,} images")


def _grid(images: Tensor, texts: Sequence[Sequence[Line]], path: str | Path, title: str) -> None:
    """Tiles in rows, pixel for pixel as the network sees them, with lines of text below each."""
    tiles = _tiles(images)
    count, tall, wide, _ = tiles.shape
    columns = _columns(count, tall / wide)
    rows, gap, line = math.ceil(count / columns), 14, 18
    strip = line * max(map(len, texts), default=0) + gap
    width, height = max(columns * (wide + gap) + gap, 420), max(gap, rows * (tall + strip))
    canvas = np.full((height, width, 3), 255, np.uint8)
    with page(path, title, width, height) as figure:
        axes = figure.add_axes(_box(figure, 0, 0, width, height))
        axes.set_axis_off()
        for i, lines in enumerate(texts):
            x, y = gap + i % columns * (wide + gap), i // columns * (tall + strip)
            canvas[y : y + tall, x : x + wide] = tiles[i]
            for j, (name, tail, colour) in enumerate(lines):
                text = _fit(name, wide + gap - 4, 6.5, tail)
                axes.text(x, y + tall + 3 + j * line, text, fontsize=6.5, color=colour, va="top")
        axes.imshow(canvas, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")


def _columns(count: int, tallness: float) -> int:
    """How many columns: a little wider than tall, and near that the number that leaves the fewest places empty."""
    count = max(1, count)
    wanted = min(count, max(4, round(math.sqrt(1.4 * tallness * count))))
    near = range(math.ceil(0.75 * wanted), min(count, math.floor(1.25 * wanted)) + 1)
    return min(near, key=lambda columns: (-count % columns, abs(columns - wanted)))


def _tiles(images: Tensor) -> np.ndarray:
    """uint8 [n, h, w, 3] with whole pixels repeated (or, for large images, averaged) to a size that shows them."""
    images = _unit_range(images.detach().cpu())
    images = images if images.shape[1] == 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    longer = max(images.shape[2:])
    wanted = 256 if len(images) <= 6 else 128
    if longer <= 256:
        zoom = max(1, round(wanted / longer))
        images = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    elif len(images):
        images = F.interpolate(images, [max(1, side * 256 // longer) for side in images.shape[2:]], mode="area")
    return images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()


def _unit_range(images: Tensor) -> Tensor:
    """float32 in 0..1. Normalised images are stretched channel by channel, which undoes any normalisation."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    images = images.float()
    if not images.numel() or (images.min() >= 0 and images.max() <= 1):
        return images
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-12)
