"""Networks that fill a budget, for people: a table, a picture, and recipes to train. What they are: `model.design`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tomli_w

from weightclass import config, recipe
from weightclass.config import joined, key_of, to_setting
from weightclass.data import sources
from weightclass.data.sources import Found
from weightclass.errors import UserError
from weightclass.evaluation.page import BLUE, FAINT, INK, PAPER, box, page
from weightclass.files import atomic_write
from weightclass.model import networks
from weightclass.model.budget import SUMMED, Budget
from weightclass.model.design import CRITERION, Design, candidates, ladder
from weightclass.model.resnet import ResNetConfig
from weightclass.recipe import Recipe
from weightclass.runlog import short
from weightclass.search.milliseconds import milliseconds
from weightclass.session import located
from weightclass.study.scatter import GREY

if TYPE_CHECKING:
    from rich.table import Table

USUAL = {(3, 32, 32): "small-cpu", (1, 8, 8): "quickstart"}
"""The recipe that trains images of a shape where none is named; folder for all others."""
OWN = ("model.blocks", "model.channels")


class Listing(NamedTuple):
    """All that fits; what of it is shown, its milliseconds where measured, and the settings upon `base` it shares."""

    base: str
    settings: list[str]
    limits: Budget
    found: list[Design]
    shown: list[Design]
    times: list[float]


def listing(
    name: str, settings: Sequence[str], image_shape: tuple[int, int, int], classes: int, top: int, most_ms: float | None
) -> Listing:
    """For recipe `name` and its images; without a name for images of `image_shape` (C, H, W).

    With `most_ms`, the networks to be shown are measured, and those that take longer left out. Raises UserError.
    """
    base = name or USUAL.get(image_shape, "folder")
    usual = ["budget.params=", *[f"data.size={image_shape[1]}"] * (base == "folder")]  # no limit but those asked for
    settings = joined(() if name else usual, settings)
    named = recipe.load(base, *settings).recipe
    if not isinstance(model := named.model, ResNetConfig):
        raise UserError(f"recipe {base}: design knows residual networks only: set model.name=resnet")
    images = sources.find(named.data) if name else Found(image_shape, classes, lambda _: sources.load(named.data))
    found = candidates(named.budget, images.image_shape, images.classes, model)
    shown, times = ladder(found, top), []
    if most_ms:
        timed = milliseconds([each.config for each in shown], images)
        shown = [each for each, ms in zip(shown, timed, strict=True) if ms < most_ms]
        times = [ms for ms in timed if ms < most_ms]
        if not shown:
            raise UserError(f"--latency-ms {most_ms:g}: the fastest takes {min(timed):.2f} ms here: bound --macs too")
    alike = [text for text in networks.settings(found[0].config, model) if key_of(text) not in OWN]
    return Listing(base, joined(settings, alike), named.budget, found, shown, times)


def own(each: Design) -> list[str]:
    """The settings that distinguish a network from the others."""
    return [to_setting(key, getattr(each.config, key.partition(".")[2])) for key in OWN]


def save(told: Listing, folder: str | Path) -> None:
    """Write design-01.toml ...: recipes upon the base, or whole ones where it does not come with the package."""
    for rank, each in enumerate(told.shown, start=1):
        settings = joined(told.settings, own(each))
        tree = {"base": told.base} | config.apply_overrides({}, settings, Recipe)
        if told.base not in recipe.names():
            tree = config.to_tree(located(recipe.load(told.base, *settings).recipe))
        atomic_write(Path(folder) / f"design-{rank:02}.toml", tomli_w.dumps(tree))


def table(told: Listing) -> Table:
    """For rich."""
    from rich.box import SIMPLE
    from rich.table import Table

    bounds = {key: bound for key in SUMMED if (bound := told.limits.limit(key))}
    grid = Table(box=SIMPLE, show_edge=False, padding=(0, 2, 0, 0), caption=CRITERION, caption_justify="left")
    for head in (
        "",
        "settings",
        "params",
        *(f"of {key}" for key in bounds),
        "MACs",
        "float32",
        "score",
        *["ms"] * bool(told.times),
    ):
        grid.add_column(head, justify="left" if head == "settings" else "right", no_wrap=True)
    for rank, each in enumerate(told.shown, start=1):
        shares = [f"{getattr(each.counts, key) / bound:.1%}" for key, bound in bounds.items()]
        sizes = short(each.counts.macs), short(each.counts.bytes_fp32, "B"), f"{each.score:.2f}"
        times = [f"{ms:.2f}" for ms in told.times[rank - 1 : rank]]
        grid.add_row(str(rank), " ".join(own(each)), f"{each.counts.params:,}", *shares, *sizes, *times)
    return grid


def draw(told: Listing, path: str | Path) -> None:
    """Write a PNG: the score of every candidate against its MACs, those shown numbered, and named beside."""
    from matplotlib.ticker import EngFormatter, LogLocator

    bounds = ", ".join(f"{key} under {value}" for key, value in config.to_tree(told.limits).items() if value)
    with page(path, f"Residual networks with {bounds}", 1650, 760) as figure:
        axes = figure.add_axes(box(figure, 92, 100, 960, 640), xscale="log", xlabel="MACs of an image", ylabel="score")
        axes.plot([each.counts.macs for each in told.found], [each.score for each in told.found], ".", color=GREY, ms=3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=99))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.minorticks_off()
        columns = [["", "blocks", "channels", "MACs"]]
        for rank, each in enumerate(told.shown, start=1):
            point = each.counts.macs, each.score
            axes.plot(*point, "o", ms=11, color=BLUE, mec=PAPER)
            axes.annotate(str(rank), point, color=PAPER, size=6, ha="center", va="center_baseline")
            columns.append([str(rank), *(text.partition("=")[2] for text in own(each)), short(point[0])])
        for row, texts in enumerate(columns):
            for x, text in zip((1100, 1140, 1270, 1530), texts, strict=True):
                left, top, *_ = box(figure, x, 740 - (row + 0.5) * 640 / len(columns), 0, 0)
                figure.text(left, top, text, size=7, va="center", color=INK if row else FAINT)
        said = f"Grey: all {len(told.found):,} that were filled. {CRITERION}"
        figure.text(*box(figure, 14, 20, 0, 0)[:2], said, size=6.5, color=FAINT)
