"""Recipes as typed structs: what a user may write, what every mistake is answered with, and that nothing is lost."""

from __future__ import annotations

import string
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightclass import config
from weightclass.config import Table, apply_overrides, build, fingerprint, merge, near_miss, parse_override, to_toml
from weightclass.errors import UserError


class SGD(Table, tag="sgd", tag_field="kind"):
    lr: Annotated[float, msgspec.Meta(gt=0)] = 0.1
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9


class AdamW(Table, tag="adamw", tag_field="kind"):
    lr: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)


class Train(Table):
    epochs: Annotated[int, msgspec.Meta(ge=1)] = 10
    warmup: int = 0
    smoothing: float = 0.0
    nesterov: bool = True
    norm: Literal["batch", "group"] = "batch"

    def __post_init__(self) -> None:
        if self.warmup > self.epochs:
            raise ValueError("warmup must not exceed epochs")


class Model(Table):
    channels: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)] = (16, 32)
    blocks: int | list[int] = 2
    ops: list[str] = msgspec.field(default_factory=list)
    budget: int | str = "5M"


class Log(Table):
    cosmetic: ClassVar[frozenset[str]] = frozenset({"folder"})

    folder: str = "runs"
    every: int = 50


class Recipe(Table):
    cosmetic: ClassVar[frozenset[str]] = frozenset({"title"})

    title: str = ""
    train: Train = Train()
    model: Model = Model()
    log: Log = Log()
    optimizer: SGD | AdamW = AdamW()


def made(*overrides: str, toml: str = "") -> Recipe:
    tree = config.parse_toml(toml, "r.toml")
    return build(apply_overrides(tree, overrides, Recipe), Recipe, "r.toml")


def mistake(*overrides: str, toml: str = "") -> str:
    with pytest.raises(UserError) as caught:
        made(*overrides, toml=toml)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- text to values ----------------------------------------------------------------------------------------


def test_defaults_and_toml() -> None:
    assert made() == Recipe()
    assert made(toml="[train]\nepochs = 3\nsmoothing = 1").train == Train(epochs=3, smoothing=1.0)
    assert mistake(toml="[train]\nepochs = = 3").startswith("r.toml: not valid TOML: ")
    assert "line 2" in mistake(toml="[train]\nepochs = = 3")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=30", 30),
        (" train.epochs = 1_000 ", 1000),
        ("train.smoothing=1e-1", 0.1),
        ("train.smoothing=.5", 0.5),
        ("train.smoothing=-2.", -2.0),
        ("train.nesterov=false", False),
        ("train.norm=group", "group"),
        ("train.norm='group'", "group"),
        ("train.norm=5", "5"),
        ("optimizer.lr=0.5", 0.5),
        ("optimizer.betas=.8,0.95", [0.8, 0.95]),
        ("optimizer={kind = 'adamw'}", {"kind": "adamw"}),
        ("model.channels=128,100,164,200", [128, 100, 164, 200]),
        ("model.channels=[128, 100]", [128, 100]),
        ("model.channels=128", [128]),
        ("model.blocks=3", 3),
        ("model.blocks=3,4", [3, 4]),
        ("model.ops=crop(4),flip", ["crop(4)", "flip"]),
        ("model.ops=flip", ["flip"]),
        ("model.ops=crop(4, reflect), one(flip,cutout(8)) , 5", ["crop(4, reflect)", "one(flip,cutout(8))", "5"]),
        ("model.ops=[flip,crop(4)]", ["flip", "crop(4)"]),  # a shell ate the quotes
        ('model.ops=["flip", "crop(4)"]', ["flip", "crop(4)"]),
        ("model.ops=crop(4,flip", ["crop(4,flip"]),  # for the policy's parser to refuse
        ("model.ops=", []),
        ("model.budget=5M", "5M"),
        ("model.budget=700_000", 700_000),
        ("log.folder=none", "none"),
        ("log.folder=2026-01-01", "2026-01-01"),
        ("log.folder=007", "007"),
        ("log.folder=12", "12"),
        ("log.folder=true", "true"),
        ("log.folder=a=b, c", "a=b, c"),
        (r'log.folder="say \"hi\""', 'say "hi"'),
        ("log.folder=", ""),
    ],
)
def test_an_override_is_read_as_its_key_asks(override: str, value: Any) -> None:
    path, found = parse_override(override, Recipe)
    assert path == override.partition("=")[0].strip().split(".")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["train.epochs", "=3", "train.=3", ".epochs=3", "train..epochs=3", ""])
def test_what_is_no_override(text: str) -> None:
    assert mistake(text) == f"override {text!r}: expected table.key=value, for example train.epochs=30"


@pytest.mark.parametrize(
    "pair",
    [
        ("train.epochs=1", "train.epochs=2"),
        ("train={epochs = 1}", "train.epochs=2"),
        ("train.epochs=1", "train={epochs = 2}"),
        ("train=1", "train.epochs=2"),
        ("train=1", "train.epochs.lr=2"),
    ],
)
def test_a_key_set_twice(pair: tuple[str, str]) -> None:
    key = pair[1].partition("=")[0]
    assert mistake(*pair) == f"override {pair[1]!r}: {key} is set twice; keep one"


# --- merging -----------------------------------------------------------------------------------------------


def test_overrides_win_and_leave_the_rest() -> None:
    toml = "[train]\nepochs = 3\nwarmup = 1\n[model]\nchannels = [8]"
    recipe = made("train.epochs=5", "log.every=1", toml=toml)
    assert recipe == Recipe(train=Train(epochs=5, warmup=1), model=Model(channels=(8,)), log=Log(every=1))


def test_a_tagged_table_keeps_its_keys_or_changes_kind() -> None:
    def found(*overrides: str) -> Table:
        toml = "[optimizer]\nkind = 'sgd'\nlr = 0.5\nmomentum = 0.8"
        return made(*(f"optimizer.{text}" for text in overrides), toml=toml).optimizer

    assert found("momentum=0.7") == SGD(lr=0.5, momentum=0.7)
    assert found("kind=sgd") == SGD(lr=0.5, momentum=0.8)
    assert found("kind=adamw") == AdamW()  # lr 0.5 was SGD's
    assert found("kind=adamw", "betas=0.5,0.9") == AdamW(betas=(0.5, 0.9))


def test_merging_changes_neither_side() -> None:
    base, over = {"optimizer": {"kind": "sgd", "lr": 1.0}}, {"optimizer": {"momentum": 0.5}}
    assert merge(base, over, Recipe) == {"optimizer": {"kind": "sgd", "lr": 1.0, "momentum": 0.5}}
    assert base == {"optimizer": {"kind": "sgd", "lr": 1.0}}
    assert over == {"optimizer": {"momentum": 0.5}}


# --- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.epochs=3", "unknown key trian: did you mean train?"),
        ("train.epoch=3", "unknown key train.epoch: did you mean epochs?"),
        ("log.zzz=3", "unknown key log.zzz: choose from folder, every"),
        ("optimizer.kind=adamv", "optimizer.kind = 'adamv': did you mean adamw?"),
        ("optimizer.kind=5", "optimizer.kind = '5': choose from adamw, sgd"),
        ("optimizer.lr=3", "optimizer.kind is missing: choose from adamw, sgd"),
        ("optimizer={kind = 'adamw', momentum = 0.5}", "unknown key optimizer.momentum of adamw: choose from"),
        ("optimizer={kind = 'sgd', lr = 0}", "optimizer.lr = 0: expected float > 0.0"),
        ("train.epochs=0", "train.epochs = 0: expected int >= 1"),
        ("train.epochs=ten", "train.epochs = 'ten': expected int, got str"),
        ("train.epochs=3.5", "train.epochs = 3.5: expected int, got float"),
        ("train.nesterov=True", "train.nesterov = 'True': expected true or false, got str"),
        ("train.smoothing=nan", "train.smoothing = nan: expected a finite number"),
        ("train.smoothing=-inf", "train.smoothing = -inf: expected a finite number"),
        ("train.norm=bach", "train.norm = 'bach': did you mean batch?"),
        ("train.norm=x", "train.norm = 'x': choose from batch, group"),
        ("train.warmup=20", "[train] warmup must not exceed epochs"),
        ("train=5", "train = 5: expected table, got int"),
        ("train.epochs.lr=5", "[train.epochs] expected int, got table"),
        ("model.channels=", "model.channels = []: expected list of length >= 1"),
        ("model.channels=8,x", "model.channels[1] = 'x': expected int, got str"),
        ("model.blocks=x", "model.blocks[0] = 'x': expected int, got str"),
    ],
)
def test_every_mistake_names_its_key_and_the_way_out(override: str, message: str) -> None:
    assert mistake(override).startswith(f"r.toml: {message}")


def test_near_miss() -> None:
    assert near_miss("chanels", ["blocks", "channels"]) == ": did you mean channels?"
    assert near_miss("xyz", ["blocks", "channels"]) == ": choose from blocks, channels"


# --- back to text ------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"))
POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False)
OPTIMIZERS = st.builds(SGD, lr=POSITIVE, momentum=st.floats(0, 1, exclude_max=True)) | st.builds(
    AdamW, lr=POSITIVE, betas=st.tuples(st.floats(0, 1), st.floats(0, 1))
)
RECIPES = st.builds(
    Recipe,
    title=TEXT,
    train=st.builds(
        Train,
        epochs=st.integers(1, 10**9),
        warmup=st.integers(-9, 1),
        smoothing=st.floats(allow_nan=False, allow_infinity=False),
        nesterov=st.booleans(),
        norm=st.sampled_from(["batch", "group"]),
    ),
    model=st.builds(
        Model,
        channels=st.lists(st.integers(), min_size=1, max_size=4).map(tuple),
        blocks=st.integers() | st.lists(st.integers(), max_size=3),
        ops=st.lists(TEXT, max_size=3),
        budget=st.integers() | TEXT,
    ),
    log=st.builds(Log, folder=TEXT, every=st.integers()),
    optimizer=OPTIMIZERS,
)


@given(RECIPES)
def test_a_recipe_written_and_read_is_the_same(recipe: Recipe) -> None:
    assert made(toml=to_toml(recipe)) == recipe
    assert build(config.to_tree(recipe), Recipe, "tree") == recipe


def test_every_key_is_written() -> None:
    written = config.parse_toml(to_toml(Recipe()), "written")
    assert written["optimizer"] == {"kind": "adamw", "lr": 0.001, "betas": [0.9, 0.999]}
    assert set(written["model"]) == set(Model.__struct_fields__)


# --- fingerprint -------------------------------------------------------------------------------------------


def test_golden_fingerprint() -> None:
    assert fingerprint(Recipe(), "data") == "3dff29a354fe0b5f"


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=11",
        "train.nesterov=false",
        "train.norm=group",
        "optimizer={kind = 'sgd', lr = 0.1}",
        "optimizer={kind = 'adamw', lr = 0.1}",
        "model.channels=32,16",
        "model.blocks=2,2",
        "model.ops=flip",
        "model.budget=5_000_000",
        "log.every=51",
    ],
)
def test_a_key_that_can_change_the_weights_changes_the_fingerprint(override: str) -> None:
    assert fingerprint(made(override)) != fingerprint(Recipe())


def test_a_kind_counts_even_where_the_keys_agree() -> None:
    class Same(Table, tag="same", tag_field="kind"):
        lr: float = 0.1
        momentum: float = 0.9

    assert fingerprint(Same()) != fingerprint(SGD())


@given(TEXT, TEXT)
def test_cosmetic_keys_do_not(title: str, folder: str) -> None:
    assert fingerprint(Recipe(title=title, log=Log(folder=folder))) == fingerprint(Recipe())


def test_the_data_counts() -> None:
    prints = {fingerprint(Recipe(), *more) for more in ((), ("a",), ("b",), ("a", "b"), ("ab",))}
    assert len(prints) == 5
    assert all(len(p) == 16 and set(p) <= set(string.hexdigits.lower()) for p in prints)


# --- quantities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (5_000_000, 5_000_000),
        ("5_000_000", 5_000_000),
        ("5M", 5_000_000),
        ("5m", 5_000_000),
        ("1.2G", 1_200_000_000),
        (".5k", 500),
        ("0.83 MB", 830_000),
        ("512KiB", 524_288),
        ("2 GiB", 2**31),
        ("7b", 7),
        ("1e6", 1_000_000),
        (1, 1),
    ],
)
def test_quantities(text: str | int, size: int) -> None:
    assert config.parse_quantity(text) == size


@pytest.mark.parametrize("text", ["", "M", "5X", "-5M", "0", "0.5", "5 5", "5MM", "nan", "inf", "1e999", True])
def test_no_quantities(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text!r} is not a size: write a number such as"):
        config.parse_quantity(text)


@given(st.integers(1, 2**53))
def test_a_whole_number_is_its_own_quantity(size: int) -> None:
    assert config.parse_quantity(size) == config.parse_quantity(f"{size:_}") == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(90, 90), ("90", 90), ("90s", 90), ("9m", 540), ("9 min", 540), ("1.5h", 5400), (0.5, 0.5), (" .5H ", 1800)],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert config.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0", "-9m", "9 days", "1h30m", "nan"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UserError, match=f"^time {text!r}: write seconds, or a number with s, m or h"):
        config.parse_duration(text)
