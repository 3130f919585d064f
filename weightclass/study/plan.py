"""A study: its file, with rows of recipes and overrides beside published numbers, and the runs that it asks for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from weightclass import config, recipe
from weightclass.config import Table, joined, key_of, parse_quantity, to_setting
from weightclass.data import sources
from weightclass.errors import UserError
from weightclass.model import budget, networks
from weightclass.model.budget import Weights
from weightclass.recipe import Named, Recipe
from weightclass.training.schedule import Step

if TYPE_CHECKING:
    from rich.table import Table as RichTable


class Row(Table):
    """One row of a study, in its file `[[rows]]`."""

    label: str
    """What stands in the table's first column."""
    recipe: str = ""
    """Another recipe than the study's base."""
    set: tuple[str, ...] = ()
    """Its settings, such as "model.blocks=3,3,2,3"."""
    published: Annotated[float, Meta(ge=0, le=100)] | None = None
    """The printed accuracy in %."""
    source: str = ""
    """Where it was printed, such as "paper, Table 2 row 2"."""
    assumed: tuple[str, ...] = ()
    """Settings that no source gives: footnotes of the table."""
    note: str = ""
    """Anything else that a reader must know: a footnote too."""


class Study(Table):
    """A study file's top level."""

    title: str
    about: str = ""
    """What is compared, in a sentence or two."""
    base: str = "paper-97"
    """The recipe of every row that names no other."""
    set: tuple[str, ...] = ()
    """Settings of every row."""
    heading: str = "row"
    """Of the first column."""
    budget: str = "5M"
    """Rows with as many parameters or more are trained, and marked; "" marks none."""
    compare: str = ""
    """The label of the row that the others are compared with; "": the first."""
    accuracy_figure: str = ""
    """Title of the figure of accuracy over epochs; "": the study's."""
    loss_figure: str = ""
    seeds: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)] = (0,)
    rows: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        try:
            parse_quantity(self.budget or 1)
        except ValueError as error:
            raise ValueError(f"budget: {error}") from None


@dataclass(frozen=True)
class Short:
    """How a pilot's runs are cut: epochs, training images, and the share of every layer's channels that is left."""

    epochs: int = 0
    subset: int = 0
    width: float = 1.0

    def parts(self) -> list[str]:
        """In words; nothing for runs in full."""
        said = [f"{self.epochs} epochs"] * bool(self.epochs) + [f"{self.subset:,} images"] * bool(self.subset)
        return said + [f"width {Fraction(self.width).limit_denominator(1000)}"] * (self.width != 1)

    def flags(self) -> list[str]:
        """On a command line."""
        said = {"--epochs": self.epochs, "--subset": self.subset, "--width": self.width if self.width != 1 else 0}
        return [str(word) for flag, value in said.items() if value for word in (flag, value)]

    def settings(self, full: Recipe) -> list[str]:
        """What to change in a recipe. What counts epochs shrinks with them, the window of averaged weights too, and a
        tenth of the images is held out: a pilot is development and leaves the test set alone."""
        if not self.parts():
            return []
        own = sources.brings_validation(full.data)
        changed: dict[str, Any] = {} if own else {"data.validation": full.data.validation or 0.1}
        if self.epochs > full.train.length:
            raise UserError(f"--epochs {self.epochs}: its full training has only {full.train.length}; choose fewer")
        if self.epochs:
            share = self.epochs / full.train.length
            changed |= {"train.epochs": self.epochs, "schedule.warmup": round(full.schedule.warmup * share, 3)}
            changed["train.ema"] = round(full.train.ema ** (1 / share), 6)  # of the same share of the training
            if isinstance(full.schedule, Step):
                changed["schedule.step_size"] = max(1, round(full.schedule.step_size * share))
        if self.subset:
            changed["data.subset"] = self.subset
        narrow = config.to_tree(networks.shrink(full.model, self.width))
        changed |= {f"model.{key}": value for key, value in narrow.items()}
        now = {f"{part}.{key}": value for part, keys in config.to_tree(full).items() for key, value in keys.items()}
        return [to_setting(key, value) for key, value in changed.items() if value != now[key]]


FULL = Short()


@dataclass(frozen=True)
class Cell:
    """One run of a study: a row with one seed."""

    row: Row
    seed: int
    named: Named
    weights: Weights
    full: Weights
    """Of the network before a pilot cut its channels."""


def names() -> list[str]:
    """The studies that come with the package."""
    files = resources.files("weightclass").joinpath("studies").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load(name: str) -> Study:
    """The study called `name` (shipped, or a .toml file). Raises UserError."""
    if Path(name).suffix == ".toml":
        if Path(name).stem in names():  # whose tables it would replace
            raise UserError(f"study {name}: {Path(name).stem} comes with the package; call your file something else")
        tree = config.read_toml(Path(name), f"study {name}")
    elif name in names():
        text = resources.files("weightclass").joinpath("studies", f"{name}.toml").read_text(encoding="utf-8")
        tree = config.parse_toml(text, name)
    else:
        raise UserError(f"no study is called {name!r}{config.near_miss(name, names())} (or a path ending in .toml)")
    study = config.build(tree, Study, f"study {name}")
    labels = [row.label for row in study.rows]
    if not labels or len(set(labels)) < len(labels):
        raise UserError(f"study {name}: {'two rows have the same label' if labels else 'it has no [[rows]]'}")
    if study.compare not in ("", *labels):
        raise UserError(f"study {name}: compare = {study.compare!r}{config.near_miss(study.compare, labels)}")
    return study


def cells(study: Study, seeds: Iterable[int], short: Short = FULL, more: Iterable[str] = ()) -> list[Cell]:
    """Every run of a study, the rows of one seed after another; `more` settings go to all of them. Raises UserError."""
    found, seeds = [], tuple(seeds)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {', '.join(map(str, seeds))}: one stands there twice, and would count twice")
    for seed, row in product(seeds, study.rows):
        try:
            found.append(_cell(study, row, seed, short, tuple(more)))
        except UserError as error:
            raise UserError(f"row {row.label!r}: {error}") from None
    return found


def _cell(study: Study, row: Row, seed: int, short: Short, more: tuple[str, ...]) -> Cell:
    name = row.recipe or study.base
    settings = joined(study.set, row.set, more)
    if "train.seed" in map(key_of, settings):
        raise UserError("train.seed is not a study's to set: its seeds are, or --seeds")
    settings.append(f"train.seed={seed}")
    full = recipe.load(name, *settings).recipe
    if full.train.epochs == "fit":
        raise UserError('train.epochs = "fit": the runs of a study are to be of one length: name a number of epochs')
    settings = joined(settings, short.settings(full))
    cut = recipe.load(name, *settings).recipe
    weights = recipe.weigh(cut)
    if not cut.data.validation and not sources.brings_validation(cut.data):
        settings = joined(["data.watch_test=true"], settings)  # the figures' curves
    if weights.params >= (cut.budget.limit("params") or math.inf):  # marked in the table, not refused
        settings = joined(settings, ["budget.params="])
    return Cell(
        row, seed, recipe.load(name, *settings), weights, weights if cut.model == full.model else recipe.weigh(full)
    )


def over_budget(study: Study, cell: Cell) -> bool:
    """Whether the table must mark this row."""
    return bool(study.budget) and cell.full.params >= parse_quantity(study.budget)


# --- what there is to run ----------------------------------------------------------------------------------


def listings(chosen: Sequence[str], seeds: Sequence[int], short: Short, more: Iterable[str]) -> list[RichTable]:
    """For rich: what each of the chosen studies would run; all studies where none is chosen."""
    studies = [load(name) for name in chosen]
    return [listing(study, cells(study, seeds or study.seeds, short, more)) for study in studies] or [contents()]


def contents() -> RichTable:
    """The studies that come with the package."""
    from rich import box
    from rich.table import Table as RichTable

    grid = RichTable("study", "what", "rows", box=box.SIMPLE, show_edge=False)
    for name in names():
        study = load(name)
        grid.add_row(name, study.title, str(len(study.rows)))
    return grid


def listing(study: Study, runs: Sequence[Cell]) -> RichTable:
    """What a study would run, and what was published for it."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    grid = RichTable(title=study.title, title_justify="left", box=box.SIMPLE, show_edge=False)
    for column in (study.heading, "seeds", "params", "MACs", "published", "from", "recipe and settings"):
        numeric = column in ("params", "MACs", "published")
        grid.add_column(column, overflow="fold", justify="right" if numeric else "left")
    for row in study.rows:
        mine = [cell for cell in runs if cell.row is row]
        params = f"{mine[0].weights.params:,}{' over' * over_budget(study, mine[0])}"
        published = "" if row.published is None else f"{row.published:g}"
        texts = row.label, ", ".join(str(cell.seed) for cell in mine), params, budget.short(mine[0].weights.macs)
        settings = [text for text in mine[0].named.overrides if key_of(text) not in ("train.seed", "data.watch_test")]
        grid.add_row(*map(escape, (*texts, published, row.source, " ".join([mine[0].named.source, *settings]))))
    return grid
