"""Shipped recipes hold what their headers say; bases, overrides and unreadable files; refusals across tables."""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from weightclass import config, recipe, run
from weightclass.champions import CLASSES
from weightclass.errors import UserError
from weightclass.model.resnet import ResNetConfig
from weightclass.recipe import Recipe
from weightclass.training.optim import AdamW

PARAMS = {
    "100k": 99_641,
    "300k": 268_552,
    "700k": 667_928,
    "efficient-resnet": 4_697_742,
    "folder": 700_434,
    "mobilenetv2": 2_236_682,
    "paper-97": 4_978_810,
    "quickstart": 77_754,
    "resnet18": 11_173_962,
    "resnet18-97": 11_173_962,
    "sam": 4_978_810,
    "small-cpu": 701_466,
    "steroids": 4_935_242,
    "table1-auto-flip-crop": 4_988_256,
    "table1-flip-crop": 4_883_178,
    "table3-row2": 4_997_074,
    "table5-row2": 4_969_776,
    "table5-row3": 4_969_776,
    "table5-row4": 4_988_256,
    "table5-row5": 5_326_506,
    "table5-row6": 4_623_178,
    "table5-row7": 6_412_362,
    "table5-row8": 701_466,
    "table5-row9": 4_969_776,
    "wide-resnet": 4_298_970,
}
HEAVY = {"resnet18", "resnet18-97", "table5-row5", "table5-row7"}
"""The recipes that the paper has over its own budget."""


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `folder` needs to be weighed: data.path=pictures."""
    monkeypatch.chdir(tmp_path)
    for label in "ab":
        Path("pictures", label).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(Path("pictures", label, "0.png"))


def settings(name: str) -> list[str]:
    return ["data.path=pictures"] if name == "folder" else []


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_every_shipped_recipe_is_known_here() -> None:
    assert recipe.names() == sorted(PARAMS)


@pytest.mark.parametrize("name", PARAMS)
def test_a_shipped_recipe_loads_and_weighs_what_it_should(name: str) -> None:
    named = recipe.load(name)
    weights = run.weigh(name, *settings(name))  # refuses what is over its budget
    assert (named.name, named.overrides, weights.params) == (name, (), PARAMS[name])
    limit = named.recipe.budget.limit("params")
    if name in HEAVY:
        assert (limit, weights.params > 5_000_000) == (None, True)
    else:
        assert limit is not None
        assert weights.params < limit


@pytest.mark.parametrize("name", PARAMS)
def test_a_shipped_recipe_says_what_it_is(name: str) -> None:
    text = resources.files("weightclass").joinpath("recipes", f"{name}.toml").read_text(encoding="utf-8")
    header = text.split("\n\n")[0]
    fields = {line.split()[1] for line in header.splitlines() if line.startswith("# ") and line[2] != " "}
    assert header.startswith(f"# {name}: ")
    assert f"\n# command    weightclass train {name}" in header
    assert "ours" in fields
    if name in CLASSES:  # the champions
        assert {"hardware", "published", "chosen"} <= fields
        assert f" {PARAMS[name]:,} parameters" in header
    elif name not in ("folder", "quickstart", "small-cpu"):  # those that somebody else trained before
        assert {"hardware", "published", "assumed"} <= fields
        assert f" {PARAMS[name]:,} parameters" in header


@pytest.mark.parametrize("name", PARAMS)
def test_a_shipped_recipe_survives_toml(name: str) -> None:
    one = recipe.load(name, "train.seed=7").recipe
    assert config.build(config.parse_toml(config.to_toml(one), "text"), Recipe, "text") == one


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert recipe.load(written(tmp_path, "mine.toml", "")).recipe == Recipe()


def test_base_then_file_then_overrides(tmp_path: Path) -> None:
    text = 'base = "quickstart"\n[train]\nepochs = 7\nseed = 1\n[optimizer]\nname = "adamw"\n'
    named = recipe.load(written(tmp_path, "mine.toml", text), "train.seed=2", "schedule.peak=.5")
    below = recipe.load("quickstart").recipe
    assert named.name == "mine"
    assert (named.recipe.train.epochs, named.recipe.train.seed) == (7, 2)
    assert (named.recipe.train.ema, named.recipe.model) == (below.train.ema, below.model)
    assert named.recipe.schedule.peak == 0.5  # type: ignore[union-attr]
    assert named.recipe.optimizer == AdamW()  # the base's nesterov and rate were SGD's


def test_a_base_file_stands_beside_its_recipe(tmp_path: Path) -> None:
    written(tmp_path, "common.toml", "[train]\nepochs = 3\n")
    assert recipe.load(written(tmp_path, "mine.toml", 'base = "common.toml"')).recipe.train.epochs == 3


def test_one_level_of_base_only(tmp_path: Path) -> None:
    below = written(tmp_path, "below.toml", 'base = "quickstart"')
    with pytest.raises(UserError, match=r"has a base itself; one level only"):
        recipe.load(written(tmp_path, "mine.toml", f'base = "{below}"'))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quikstart", r"no recipe is called 'quikstart': did you mean quickstart\? \(or a path ending in .toml\)"),
        ("zzz", "choose from 100k, 300k, 700k, efficient-resnet, folder, mobilenetv2, "),
        ("", "no recipe is called ''"),
        ("absent.toml", "recipe absent.toml: cannot be read: No such file or directory"),
        ("some/where", "recipe some/where: cannot be read"),
    ],
)
def test_an_unknown_recipe(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        recipe.load(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[train]\nepochs = \xff\n", r"mine.toml: cannot be read: not UTF-8 text"),
        (b"[train]\nepochs = \n", r"mine.toml: not valid TOML: .*line 2"),
        (b"[train]\nepoch = 3\n", r"unknown key train.epoch: did you mean epochs\?"),
        (b"[train]\nepochs = 'three'\n", r"recipe mine: train.epochs = 'three': choose from a whole number, fit"),
        (b"train = 3\n", r"recipe mine: train = 3: expected table"),
        (b"base = 3\n", r"no recipe is called '3'"),
    ],
)
def test_a_broken_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        recipe.load(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.epochs=3", "schedule.name=cosine", "schedule.warmup=3"],
            r"schedule.warmup = 3 .* train.epochs = 3",
        ),
        (["schedule.name=cosine", "schedule.eta_min=0.1"], r"schedule.eta_min must be below optimizer.lr = 0.1"),
        (["data.watch_test=true", "data.validation=50"], r"data.watch_test .* data.validation = 50 .*one of them"),
    ],
)
def test_tables_that_do_not_go_together(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"recipe quickstart: {message}"):
        recipe.load("quickstart", *overrides)


def test_what_only_just_goes_together() -> None:
    recipe.load("quickstart", "train.epochs=3", "schedule.name=cosine", "schedule.warmup=2.9")
    recipe.load("quickstart", "schedule.name=cosine", "schedule.eta_min=0.09")


def test_augmentation_that_the_images_cannot_bear_is_refused_in_weighing() -> None:
    with pytest.raises(UserError, match=r"crop\(8\).*8x8"):
        recipe.weigh(recipe.load("quickstart", "augment.ops=crop(8)").recipe)


def test_the_fingerprint_sees_weights_and_data_only() -> None:
    def mark(*overrides: str, data: str = "digest") -> str:
        return recipe.fingerprint(recipe.load("quickstart", *overrides).recipe, data)

    assert mark() == mark()
    for same in ("budget.params=90k", "machine.threads=2", "data.watch_test=true", "train.checkpoint_seconds=1"):
        assert mark(same) == mark(), same
    for other in ("train.seed=1", "train.epochs=41", "augment.ops=crop(2)", "optimizer.lr=.2"):
        assert mark(other) != mark(), other
    assert mark(data="another") != mark()


# --- own pictures and a budget -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "source", "set_"),
    [
        ("pictures", "folder", "folder"),
        ("./pictures", "folder", "folder"),
        ("digits", "quickstart", "digits"),
        ("cifar10", "small-cpu", "cifar10"),
        ("cifar100", "small-cpu", "cifar100"),
        ("", "quickstart", "digits"),
    ],
)
def test_the_data_has_its_recipe(data: str, source: str, set_: str) -> None:
    named = recipe.tailored(data=data)
    assert (named.source, named.recipe.data.name) == (source, set_)
    assert named.recipe.data.path == (data if set_ == "folder" else "")
    assert named.recipe.model == recipe.load(source, *settings(source)).recipe.model


@pytest.mark.parametrize("budget", ["3k", 20_000, "300K"])
@pytest.mark.parametrize("data", ["pictures", "digits", "cifar100"])
def test_a_budget_picks_a_network_that_fills_it(data: str, budget: str | int) -> None:
    """By settings alone: the command says which, whatever a later version would pick."""
    named = recipe.tailored(data=data, budget=budget)
    limit = config.parse_quantity(budget)
    assert named.recipe.budget.limit("params") == limit
    assert limit * (0.9 if limit < 100_000 else 0.99) < recipe.weigh(named.recipe).params < limit
    _, _, *words = shlex.split(recipe.reproduce(named))
    assert recipe.load(*words) == named
    assert any(word.startswith("model.blocks=") for word in words)


def test_a_named_recipe_and_a_named_network_stay(tmp_path: Path) -> None:
    own = recipe.tailored("", "model.blocks=1,1", "model.channels=4,8", data="pictures", budget="50k").recipe
    assert (own.model.blocks, own.budget.params) == ((1, 1), "50k")  # type: ignore[union-attr]
    mine = written(tmp_path, "mine.toml", '[model]\nname = "mobilenetv2"\n[train]\nbatch_size = 7\n')
    named = recipe.tailored(mine, "train.epochs=2", data="pictures", budget="50k")
    assert (named.name, named.recipe.train.batch_size, named.recipe.train.epochs) == ("mine", 7, 2)
    assert isinstance(named.recipe.model, ResNetConfig)


@pytest.mark.parametrize(
    ("overrides", "said", "message"),
    [
        (["data.path=other"], {"data": "pictures"}, r"override 'data.path=other': --data is there to say that"),
        (["data.name=cifar10"], {"data": "digits"}, r"override 'data.name=cifar10': --data is there"),
        (["budget.params=2M"], {"budget": "1M"}, r"override 'budget.params=2M': --budget is there"),
        ([], {"data": "cifr10"}, r"data 'cifr10': no such folder; or choose from digits, cifar10, cifar100"),
        (["data.size=9"], {"data": "cifar10"}, r"size is for name = .folder."),
        ([], {"data": "pictures", "budget": "lots"}, r"'lots' is not a size"),
        ([], {"data": "pictures", "budget": 9}, r"no residual network for 9x9 images and 2 classes is under params 9"),
    ],
)
def test_what_contradicts_is_one_line(overrides: list[str], said: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe.tailored("", *overrides, **said)


def test_the_command_makes_the_same_run_again(tmp_path: Path) -> None:
    path = written(tmp_path, "my recipe.toml", "[train]\nepochs = 3\n")
    named = recipe.load(path, "augment.ops=crop(1, reflect),flip", "train.seed=2")
    program, verb, *words = shlex.split(recipe.reproduce(named))
    assert (program, verb) == ("weightclass", "train")
    assert recipe.load(*words) == named


@pytest.mark.parametrize("setting", ["model.norm=none", "model.preactivation=true", "model.preactivation=blocks"])
def test_muon_needs_norms_behind_convolutions(setting: str) -> None:
    with pytest.raises(UserError, match="muon is for convolutions that a norm follows"):
        recipe.load("small-cpu", "optimizer.name=muon", setting)
    recipe.load("small-cpu", "optimizer.name=muon")
