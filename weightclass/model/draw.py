"""A picture of a network: one box a block, as tall as its map, as long as its channels, darker the more it weighs."""

from __future__ import annotations

from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from weightclass.files import atomic_write
from weightclass.model.budget import Row, Weights, grouped, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, VERMILLION = "#222222", "#6f6f6f", "#D55E00"
GAP, SLANT = 0.14, 0.16  # between boxes; a box's depth by its height (all lengths: the tallest box is 1)
STEP = 0.5  # from box to box at least, or the shapes written above narrow ones would touch
LEFT, TOP, BOTTOM = -0.8, 0.98, -1.2  # edges of the drawing; the first box starts at x = 0, all are centred on y = 0
RULE, BARS = 0.79, -0.66  # the line over each layer, and the line that the MAC bars hang from
HEADING = 0.72  # inches


class Box(NamedTuple):
    """Where a row of the layer table stands in the picture."""

    row: Row
    left: float
    right: float
    height: float

    @property
    def depth(self) -> float:
        return self.height * SLANT

    @property
    def middle(self) -> float:
        return (self.left + self.right + self.depth) / 2


def draw(weights: Weights, path: str | Path, title: str) -> None:
    """Write a PNG to `path`: colour and the figure above a box are its share of parameters, the bar below of MACs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    boxes = _boxes(grouped(weights))
    wide, high = boxes[-1].right + 0.2 - LEFT, TOP - BOTTOM
    inch = min(max(7.5 / wide, 1.15), 1.6)  # a unit; short networks are drawn larger
    width, height = max(wide * inch, 7.5), high * inch + HEADING
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    axes = figure.add_axes((0, 0, 1, high * inch / height), xlim=(LEFT, LEFT + width / inch), ylim=(BOTTOM, TOP))
    axes.axis("off")
    _flow(axes, boxes)
    most = max(box.row.params for box in boxes), max(box.row.macs for box in boxes)
    for box in boxes:
        _block(axes, box, box.row.params / weights.params, box.row.params / most[0])
        _bar(axes, box, box.row.macs / weights.macs, box.row.macs / most[1])
    _layers(axes, boxes)
    totals = f"{weights.params:,} parameters, {short(weights.macs)} MACs, {short(weights.bytes_fp32, 'B')} in float32, "
    totals += f"{short(weights.bytes_int8, 'B')} in int8"
    fits = min(13, 72 * (width - 0.4) / (0.7 * len(title)))  # points: a bold letter is up to 0.7 of its size wide
    for text, size, weight, down in ((title, fits, "bold", 0.15), (totals, 9, "normal", 0.42)):
        place = (0.2 / width, 1 - down / height)
        figure.text(*place, text, size=size, weight=weight, va="top", color=INK, parse_math=False)
    image = BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    atomic_write(path, image.getvalue())


def _boxes(rows: list[Row]) -> list[Box]:
    """Square roots of channels and map sides, so that a 4x4 map of a 32x32 image is still seen."""
    maps = [row.shape for row in rows if len(row.shape) == 3]
    widest, tallest = max(shape[0] for shape in maps), max(shape[1] for shape in maps)
    boxes, left = [], 0.0
    for row in rows:
        channels, side = row.shape[:2] if len(row.shape) == 3 else (0.1 * widest, 1)
        right = left + 0.55 * (channels / widest) ** 0.5
        boxes.append(Box(row, left, right, (side / tallest) ** 0.5))
        left = max(right + boxes[-1].depth + GAP, left + STEP)
    return boxes


def _flow(axes: Axes, boxes: list[Box]) -> None:
    axes.plot([boxes[0].right, boxes[-1].left], [0, 0], color=FAINT, linewidth=0.8, zorder=0)
    for y, va, text in ((0, "center", "share of\nparameters"), (BARS, "top", "share of\nMACs")):
        axes.text(-0.15, y, text, size=7.5, ha="right", va=va, color=FAINT)


def _block(axes: Axes, box: Box, share: float, heat: float) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Polygon

    left, right, low, up, depth = box.left, box.right, -box.height / 2, box.height / 2, box.depth
    low, up = low - depth / 2, up - depth / 2
    faces = {
        1.0: [(left, low), (right, low), (right, up), (left, up)],
        0.93: [(left, up), (right, up), (right + depth, up + depth), (left + depth, up + depth)],
        0.84: [(right, low), (right + depth, low + depth), (right + depth, up + depth), (right, up)],
    }
    red, green, blue, _ = colormaps["YlGnBu"](0.06 + 0.78 * heat)
    for light, corners in faces.items():
        colour = (red * light, green * light, blue * light)
        axes.add_patch(Polygon(corners, facecolor=colour, edgecolor="white", linewidth=0.8, joinstyle="round"))
    axes.text(box.middle, up + depth + 0.03, f"{share:.1%}", size=7.5, ha="center", color=INK)


def _bar(axes: Axes, box: Box, share: float, length: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((box.middle - 0.1, BARS), 0.2, -0.3 * length, facecolor=VERMILLION, alpha=0.8))
    axes.text(box.middle, BARS - 0.3 * length - 0.03, f"{share:.1%}", size=7.5, ha="center", va="top", color=INK)


def _layers(axes: Axes, boxes: list[Box]) -> None:
    """A line over the blocks of each layer, with its name and the shape that it gives."""
    for name, group in groupby(boxes, key=lambda box: box.row.name.split(".")[0]):
        members = list(group)
        left, right = members[0].left, members[-1].right + members[-1].depth
        axes.plot([left, right], [RULE, RULE], color=FAINT, linewidth=0.8, solid_capstyle="butt")
        text = f"{name}\n{'x'.join(map(str, members[-1].row.shape))}"
        place = ((left + right) / 2, RULE + 0.03)
        axes.text(*place, text, size=7.5, ha="center", va="bottom", color=INK, linespacing=1.3)
