"""The page that every picture is drawn on: one style, sizes in pixels, written whole or not at all.

matplotlib's object interface only: no window, and no state that outlives the picture.
"""

from __future__ import annotations

import textwrap
import warnings
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightclass.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def box(figure: Figure, left: float, bottom: float, width: float, height: float) -> tuple[float, float, float, float]:
    """A rectangle in pixels as matplotlib's fractions of the figure."""
    across, up = figure.bbox.size
    return left / across, bottom / up, width / across, height / up


def text_width(text: str, points: float) -> float:
    """The pixels that `text` takes from left to right."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(STYLE["font.family"]))
    font.set_size(points, DPI)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        font.set_text(text)
    return font.get_width_height()[0] / 64


def fit(name: str, room: float, points: float, tail: str = "") -> str:
    """`name` and `tail` in `room` pixels; the name is cut short where it must be."""
    if text_width(name + tail, points) <= room:
        return name + tail
    cut = bisect_right(range(1, len(name)), room, key=lambda n: text_width(f"{name[:n]}…{tail}", points))
    return f"{name[: max(1, cut)]}…{tail}"
