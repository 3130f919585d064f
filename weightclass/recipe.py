"""A recipe: every setting of a run, gathered from its parts, loaded by name or from a file, checked as a whole."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from weightclass import config
from weightclass.augment import pipeline
from weightclass.augment.pipeline import Augment
from weightclass.config import Table, key_of
from weightclass.data import sources
from weightclass.data.sources import Data, Found
from weightclass.device import Machine
from weightclass.errors import UserError
from weightclass.model import budget, networks
from weightclass.model.budget import Budget, Weights
from weightclass.model.design import pick
from weightclass.model.networks import Network
from weightclass.model.resnet import ResNetConfig
from weightclass.trackers import Track
from weightclass.training.distill import Distill
from weightclass.training.loop import Train
from weightclass.training.optim import SGD, Muon, Optimizer
from weightclass.training.schedule import AnySchedule, Cosine


class Recipe(Table):
    """All tables of a recipe file. The budget bounds the network but does not change its weights; what [distill] does
    to them, `fingerprint` adds."""

    cosmetic: ClassVar[frozenset[str]] = frozenset({"budget", "track", "distill"})

    data: Data = Data()
    budget: Budget = Budget()
    model: Network = ResNetConfig()
    augment: Augment = Augment()
    optimizer: Optimizer = SGD()
    schedule: AnySchedule = Cosine()
    train: Train = Train()
    distill: Distill = Distill()
    machine: Machine = Machine()
    track: Track = Track()


@dataclass(frozen=True)
class Named:
    """A recipe and the name it goes by (its file's), with its overrides and what it was loaded as (name or path)."""

    name: str
    recipe: Recipe
    overrides: tuple[str, ...] = ()
    source: str = ""


def names() -> list[str]:
    """The recipes that come with the package."""
    files = resources.files("weightclass").joinpath("recipes").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load(name: str, *overrides: str) -> Named:
    """The recipe called `name` (shipped, or a .toml file), one level of `base`, overrides on top; checked."""
    tree, label = _read(name)
    base = tree.pop("base", None)
    if base is not None:
        below, _ = _read(str(base), Path(name).parent)
        if "base" in below:
            raise UserError(f"{name}: its base {base!r} has a base itself; one level only: copy what it needs")
        tree = config.merge(below, tree, Recipe)
    tree = config.apply_overrides(tree, overrides, Recipe)
    recipe = config.build(tree, Recipe, f"recipe {label}")
    check(recipe, f"recipe {label}")
    return Named(label, recipe, overrides, name)


BASES = {"": "quickstart", "digits": "quickstart", "cifar10": "small-cpu", "cifar100": "small-cpu"}
"""Recipe for a set; that for a folder is called folder."""


def tailored(name: str = "", *overrides: str, data: str = "", budget: int | str = "") -> Named:
    """Recipe `name` (empty: the one for such data) for a set or a folder of pictures called `data`, with a network
    picked to fill `budget` parameters, unless a setting says which; all of it as ordinary settings. Raises UserError.
    """
    said = [f"data.name={data}"] if data in BASES else ["data.name=folder", f"data.path={data}"]
    said = said * bool(data) + [f"budget.params={budget}"] * (budget != "")
    if data not in BASES and not Path(data).expanduser().is_dir():
        raise UserError(f"data {data!r}: no such folder; or choose from {', '.join(filter(None, BASES))}")
    for text in overrides:
        if key_of(text) in map(key_of, said):
            raise UserError(f"override {text!r}: --{text.partition('.')[0]} is there to say that; keep one of them")
    name = name or BASES.get(data, "folder")
    named = load(name, *overrides, *said)
    if budget == "" or any(text.startswith("model.") for text in overrides):
        return named
    found = sources.find(named.recipe.data)
    picked = pick(named.recipe.budget, found.image_shape, found.classes)
    return load(name, *overrides, *said, *networks.settings(picked, named.recipe.model))


def _read(name: str, beside: Path = Path()) -> tuple[dict[str, Any], str]:
    path = beside / name
    if path.suffix == ".toml" or (len(Path(name).parts) > 1 and not path.is_dir()):
        return config.read_toml(path, f"recipe {name}"), path.stem
    if name and name not in names() and Path(name).is_dir():
        raise UserError(f"{name} is a folder: weightclass train --data {shlex.quote(name)} trains on its pictures")
    if name not in names():
        raise UserError(f"no recipe is called {name!r}{config.near_miss(name, names())} (or a path ending in .toml)")
    text = resources.files("weightclass").joinpath("recipes", f"{name}.toml").read_text(encoding="utf-8")
    return config.parse_toml(text, name), name


def check(recipe: Recipe, where: str) -> None:
    """Refuse combinations across tables that cannot work."""
    if recipe.train.epochs != "fit" and recipe.schedule.warmup >= recipe.train.epochs:
        raise UserError(
            f"{where}: schedule.warmup = {recipe.schedule.warmup:g} epochs leaves nothing of "
            f"train.epochs = {recipe.train.epochs}; shorten it"
        )
    if isinstance(recipe.schedule, Cosine) and recipe.schedule.eta_min >= recipe.optimizer.lr:
        raise UserError(f"{where}: schedule.eta_min must be below optimizer.lr = {recipe.optimizer.lr:g}")
    bare = isinstance(recipe.model, ResNetConfig) and (recipe.model.norm == "none" or recipe.model.preactivation)
    if isinstance(recipe.optimizer, Muon) and bare:
        raise UserError(
            f"{where}: optimizer.name = muon is for convolutions that a norm follows: leave out model.norm and "
            "model.preactivation, or choose another optimizer"
        )
    if recipe.data.watch_test and recipe.data.validation:
        raise UserError(
            f"{where}: data.watch_test draws test curves of a final training, data.validation = "
            f"{recipe.data.validation} is for development: set one of them"
        )


def weigh(recipe: Recipe, found: Found | None = None) -> Weights:
    """Build the recipe's network for the images that were found (or are now) on the meta device, and weigh it."""
    found = found or sources.find(recipe.data)
    pipeline.check(recipe.augment, found.image_shape)
    return budget.weigh(networks.build(recipe.model, found.image_shape, found.classes), found.image_shape)


def fingerprint(recipe: Recipe, data_digest: str) -> str:
    """Names the run: all that can change its weights, the hashes of data and teachers included."""
    told = recipe.distill
    learned = (f"{told.temperature} {told.weight}", *told.digests()) if told else ()
    return config.fingerprint(recipe, data_digest, *learned)


def reproduce(named: Named) -> str:
    """The command that makes this run again."""
    return shlex.join(["weightclass", "train", named.source or named.name, *named.overrides])
