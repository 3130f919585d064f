"""What a search proposes: recipes that load, networks under the budget, and nothing it was not asked to choose."""

from __future__ import annotations

import msgspec
import optuna
import pytest

from weightclass import recipe
from weightclass.config import key_of
from weightclass.data.sources import Found
from weightclass.model import design
from weightclass.model.budget import Budget
from weightclass.model.resnet import ResNetConfig
from weightclass.model.shapes import counts
from weightclass.recipe import Recipe
from weightclass.search import space

IMAGES = {"colour": (3, 32, 32), "grey": (1, 8, 8), "large": (3, 64, 48)}


def found(shape: tuple[int, int, int], classes: int = 7) -> Found:
    return Found(shape, classes, lambda _: pytest.fail("nothing is to be read"))


def base(name: str = "small-cpu", **limits: str) -> Recipe:
    return msgspec.structs.replace(recipe.load(name).recipe, budget=Budget(**limits))


def trials(count: int) -> list[optuna.Trial]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [study.ask() for _ in range(count)]


@pytest.mark.parametrize(
    "shape", [pytest.param(IMAGES[each], id=each, marks=pytest.mark.slow if each == "large" else ()) for each in IMAGES]
)
def test_every_proposal_is_a_recipe_under_the_budget(shape: tuple[int, int, int]) -> None:
    start = base(params="200k", macs="20M")
    shares = []
    for trial in trials(6):
        settings = space.settings(trial, start, found(shape), space.GROUPS)
        assert settings is not None
        assert len(set(map(key_of, settings))) == len(settings)
        proposed = recipe.load("small-cpu", *settings).recipe
        weights = counts(proposed.model, shape, 7)
        assert weights.params < 200_000
        assert weights.macs < 20_000_000
        shares.append(max(weights.params / 200_000, weights.macs / 20_000_000))
        recipe.pipeline.check(proposed.augment, shape)
    assert min(shares) > 0.95, "a limit is to be filled"


def test_what_leaves_a_second_limit_unused_becomes_a_network_that_does_not() -> None:
    shape, limits = (3, 32, 32), Budget(params="701467", macs="38.55M")
    best = max(design.candidates(limits, shape, 10), key=lambda each: each.score)
    poor = ResNetConfig(
        blocks=(3, 1, 1), channels=(20, 50, 90), pool="avg(2)"
    )  # fills the MACs with 304,490 parameters
    better = space._better(poor, limits, found(shape, 10))
    assert (better.blocks, better.pool) == (best.config.blocks, "avg(2)")
    weighed = counts(better, shape, 10)
    assert weighed < (701_467, 38_550_000)
    assert design.score(better, weighed) > best.score - 0.1
    for good in (best.config, ResNetConfig(blocks=(2, 2, 2, 2), channels=(16, 32, 64, 128))):
        assert space._better(good, limits, found(shape, 10)) == good
    for loose in (Budget(params="20M"), Budget()):
        assert space._better(poor, loose, found(shape, 10)) == poor


def test_only_what_it_may_choose_is_chosen() -> None:
    for group in space.GROUPS:
        settings = space.settings(trials(1)[0], base(params="200k"), found((3, 32, 32)), [group])
        assert settings
        tables = {text.partition(".")[0] for text in settings}
        assert tables <= {group} | ({"train"} if group == "schedule" else set())


def test_other_recipes_become_what_is_proposed() -> None:
    """A MobileNetV2 becomes a residual network, a cosine one cycle, Adadelta may become AdamW."""
    for name in ("mobilenetv2", "table5-row2", "paper-97", "steroids"):
        for trial in trials(4):
            settings = space.settings(trial, base(name, params="300k"), found((3, 32, 32)), space.GROUPS)
            assert settings is not None
            proposed = recipe.load(name, *settings, "budget.params=300k").recipe
            assert 0.98 * 300_000 < counts(proposed.model, (3, 32, 32), 7).params < 300_000


def test_what_does_not_fit_is_not_proposed() -> None:
    assert space.settings(trials(1)[0], base(params="20"), found((3, 32, 32)), ["model"]) is None
