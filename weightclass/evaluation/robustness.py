"""Accuracy on corrupted images beside that on clean ones: what is kept, the table on a terminal, the picture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch.nn.functional as F
from torch import Tensor

from weightclass.evaluation.corruptions import SEVERITIES, corrupt
from weightclass.evaluation.page import FAINT, INK, PAPER, VERMILLION, box, page

if TYPE_CHECKING:
    from rich.table import Table

GROUPS = ("noise",) * 3 + ("blur",) * 4 + ("weather",) * 4 + ("digital",) * 4  # of the kinds, in their order


class Robustness(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracies in 0..1 of a model on `n` images; `msgspec.json.encode` writes it, `decode` reads it back."""

    model: str
    split: str
    n: int
    clean: float  # of the images as they are
    mean: float  # of all kinds and severities
    kinds: dict[str, tuple[float, ...]]  # by severity, 1 to 5

    def __str__(self) -> str:
        return f"{self.clean:.2%} clean, {self.mean:.2%} corrupted, {self.n:,} {self.split} images"


def table(found: Robustness) -> Table:
    """For rich's `print`: accuracies in %, a row for each kind and their mean."""
    from rich import box
    from rich.table import Table

    grid = Table(title=str(found), title_style="bold", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("", style="dim")
    grid.add_column("severity")
    for title in (*map(str, SEVERITIES), "mean"):
        grid.add_column(title, justify="right")
    means = [sum(column) / len(column) for column in zip(*found.kinds.values(), strict=True)]
    for (kind, row), (group, after) in zip(found.kinds.items(), pairwise((*GROUPS, "")), strict=True):
        shares = [f"{100 * share:.2f}" for share in (*row, sum(row) / len(row))]
        grid.add_row(group, kind.replace("_", " "), *shares, end_section=group != after)
    grid.add_row("", "mean", *(f"{100 * share:.2f}" for share in (*means, found.mean)), style="bold")
    return grid


def draw(found: Robustness, image: Tensor, path: str | Path) -> None:
    """A heat map, darker the more of the clean accuracy is lost; each cell shows what becomes of `image`, [C, H, W]."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    shades = LinearSegmentedColormap.from_list("lost", [PAPER, "#f8c9a8", VERMILLION, "#5c1a00"])
    side, wide, left, top = 64, 146, 190, 30  # pixels; a gap of 2 more
    width, height = left + len(SEVERITIES) * (wide + 2) + 12, top + len(found.kinds) * (side + 2) + 12
    with page(path, f"{found.model}: {found}", width, height) as figure:
        axes = figure.add_axes(box(figure, 0, 0, width, height), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        for column, severity in enumerate(SEVERITIES):
            axes.text(left + column * (wide + 2), 8, f"severity {severity}", fontsize=6.5, color=FAINT, va="top")
            for row, (kind, accuracies) in enumerate(found.kinds.items()):
                x, y = left + column * (wide + 2), top + row * (side + 2)
                lost = 1 - accuracies[column] / (found.clean or 1)
                tile = F.interpolate(corrupt(image[None], kind, severity).float(), (side, side), mode="area")[0]
                pixels = tile.byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
                axes.add_patch(Rectangle((x, y), wide, side, facecolor=shades(lost)))
                axes.imshow(pixels, extent=(x, x + side, y + side, y), aspect="auto", zorder=2)
                colour, place = PAPER if lost > 0.5 else INK, (x + (side + wide) / 2, y + side / 2)
                axes.text(*place, f"{accuracies[column]:.1%}", fontsize=8, color=colour, ha="center", va="center")
                if not column:
                    axes.text(14, place[1], kind.replace("_", " "), fontsize=8, va="center")
