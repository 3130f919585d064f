"""What a search may choose, as settings of a recipe: a network that fills the budget, and how it is trained.

Each group asks Optuna's trial for its choices; the recipe's own settings are the middle of what it may choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING

from msgspec import structs

from weightclass.augment.operations import COLOURED
from weightclass.augment.pipeline import parse
from weightclass.config import to_setting
from weightclass.data.sources import Found
from weightclass.model import networks
from weightclass.model.budget import SUMMED, Budget
from weightclass.model.design import PLAIN, Design, candidates, most_layers, score
from weightclass.model.resnet import ResNetConfig
from weightclass.model.shapes import counts, fill
from weightclass.recipe import Recipe
from weightclass.training.optim import AdamW
from weightclass.training.schedule import OneCycle

if TYPE_CHECKING:
    from optuna import Trial

MOST_BLOCKS = 4
WASTE = 1.0
"""By how much a network's score may fall short of another's: by half of the MACs x parameters."""
POLICIES = ("none", "trivialaugment", "randaugment(2, 5)", "autoaugment")
MIXES = ("none", "mixup(0.2)", "cutmix(1, 0.5)")
WEIGHTY = ("kernels", "preactivation", "se", "se_reduction", "norm", "stem_kernel")
"""Keys of a network, beside its shape, that its MACs and parameters depend on."""
Group = Callable[["Trial", Recipe, Found], "list[str] | None"]


def settings(trial: Trial, recipe: Recipe, found: Found, over: Iterable[str]) -> list[str] | None:
    """What `trial` proposes for images as `found`: the settings to put upon `recipe`, whose budget holds.

    `over` names the GROUPS that it may choose. None where no network of the proposed shape fits.
    """
    chosen: list[str] = []
    for name in over:
        if (some := GROUPS[name](trial, recipe, found)) is None:
            return None
        chosen += some
    return chosen


def model(trial: Trial, recipe: Recipe, found: Found) -> list[str] | None:
    """A residual network as wide as the budget admits: depth, growth of the width, kernels, pools, blocks of a kind."""
    own = recipe.model if isinstance(recipe.model, ResNetConfig) else ResNetConfig()
    most = most_layers(found.image_shape)
    layers = trial.suggest_int("layers", max(1, most - 1), most)
    widths = [64.0]
    for layer in range(2, layers + 1):
        widths.append(widths[-1] * trial.suggest_float(f"growth{layer}", 1.0, 3.0, step=0.25))
    shape = structs.replace(
        own,
        blocks=tuple(trial.suggest_int(f"blocks{layer}", 1, MOST_BLOCKS) for layer in range(1, layers + 1)),
        channels=tuple(map(round, widths)),
        stem_channels=0,
        kernels=trial.suggest_categorical("kernels", (3, 5)),
        skip_kernels=1,
        pool=trial.suggest_categorical("pool", ("global", "avg(2)")),
        downsample=trial.suggest_categorical("downsample", ("stride", "avgpool", "maxpool")),
        activation=trial.suggest_categorical("activation", ("relu", "silu")),
        preactivation=trial.suggest_categorical("preactivation", (False, True)),
        se=trial.suggest_categorical("se", ("none", "blocks")),
        zero_init_residual=trial.suggest_categorical("zero_init_residual", (False, True)),
    )
    full = fill(shape, recipe.budget, found.image_shape, found.classes)
    if full is None:
        return None
    return networks.settings(_better(full, recipe.budget, found), recipe.model)


def _better(network: ResNetConfig, limits: Budget, found: Found) -> ResNetConfig:
    """`network`, or the like of it in a shape that the rule of thumb ranks far higher at no more MACs: one that fills a
    second limit, too, say. Short trainings flatter small networks, and would not know."""
    weighed = counts(network, found.image_shape, found.classes)
    kind = structs.replace(PLAIN, **{key: getattr(network, key) for key in WEIGHTY})
    light = structs.replace(limits, activations="")  # which would have every rival built
    rivals = _rivals(light, found.image_shape, found.classes, kind)  # type: ignore[arg-type]
    best = max((each for each in rivals if each.counts.macs <= weighed.macs), key=lambda each: each.score, default=None)
    if best is None or score(network, weighed) >= best.score - WASTE:
        return network
    better = structs.replace(network, blocks=best.config.blocks, channels=best.config.channels)
    return fill(better, limits, found.image_shape, found.classes) or network  # its pool may weigh more


@cache
def _rivals(limits: Budget, image_shape: tuple[int, int, int], classes: int, kind: ResNetConfig) -> list[Design]:
    return candidates(limits, image_shape, classes, kind) if any(map(limits.limit, SUMMED)) else []


def optimizer(trial: Trial, recipe: Recipe, found: Found) -> list[str]:
    """The recipe's kind or AdamW, its rate up to four times either way, its weight decay ten times."""
    own = recipe.optimizer
    kinds = tuple(dict.fromkeys((own.__struct_config__.tag, "adamw")))
    kind = str(trial.suggest_categorical("optimizer", kinds))
    base = own if kind == own.__struct_config__.tag else AdamW()
    lr = base.lr * 2 ** trial.suggest_float(f"{kind}.lr", -2, 2, step=0.25)
    decay = (base.weight_decay or 1e-4) * 10 ** trial.suggest_float(f"{kind}.weight_decay", -1, 1, step=0.125)
    named = [to_setting("optimizer.name", kind)] * (base is not own)
    return [*named, f"optimizer.lr={lr:.3g}", f"optimizer.weight_decay={decay:.3g}"]


def schedule(trial: Trial, recipe: Recipe, found: Found) -> list[str]:
    """One cycle, its peak and its end; label smoothing, which bends the loss as the rate falls."""
    peak = trial.suggest_float("peak", 0.1, 0.4, step=0.05)
    end = trial.suggest_categorical("end", (0.0, 0.01, 0.05))
    named = [] if isinstance(recipe.schedule, OneCycle) else ["schedule.name=onecycle"]
    smoothing = trial.suggest_categorical("label_smoothing", (0.0, 0.05, 0.1))
    return [*named, f"schedule.peak={peak:.3g}", f"schedule.end={end:g}", f"train.label_smoothing={smoothing:g}"]


def augment(trial: Trial, recipe: Recipe, found: Found) -> list[str]:
    """The recipe's own operations without their policies and mixes; then a policy, a cutout and a mix, or none."""
    colours, side = found.image_shape[0] == 3, min(found.image_shape[1:])
    added = ("cutout", "erase", "mixup", "cutmix", *COLOURED)
    ops = [text for text in recipe.augment.ops if parse(text)[0] not in added]
    policy = trial.suggest_categorical("policy", POLICIES) if colours else "none"
    size = round(trial.suggest_categorical("cutout", (0.0, 0.25, 0.5)) * side)
    mix = trial.suggest_categorical("mix", MIXES)
    ops = [text for text in (policy, *ops) if text != "none"] + [f"cutout({size})"] * (size > 0)
    return [to_setting("augment.ops", [*ops, *([] if mix == "none" else [mix])])]


GROUPS: dict[str, Group] = {"model": model, "optimizer": optimizer, "schedule": schedule, "augment": augment}
