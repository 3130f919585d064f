"""Residual networks that fill a budget, ranked by a criterion that costs nothing: arithmetic on shapes, no training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from msgspec import structs

from weightclass.errors import UserError
from weightclass.model.budget import SUMMED, Budget
from weightclass.model.resnet import ResNetConfig
from weightclass.model.shapes import Counts, counts, fill

SMALLEST_MAP = 4
"""Pixels a side of the last layer's map, at least."""
BLOCKS, FREE = (1, 2, 3, 5), 4
"""Blocks that each of the last FREE layers may have; those before them, in networks for large images, have one."""
GROWTHS = (1, 2**0.25, 2**0.5, 2**0.75, 2)
"""How many times wider than the layer before it a layer may be."""
CRITERION = "Score: log2(MACs x parameters) - log2(convolutions in line / 12)^2"
PLAIN = ResNetConfig()


class Design(NamedTuple):
    """A network that fits, what it weighs, and how good it promises to be."""

    config: ResNetConfig
    counts: Counts
    score: float


def design(
    limits: Budget | str | int,
    image_shape: tuple[int, int, int],
    classes: int,
    top: int = 15,
    base: ResNetConfig = PLAIN,
) -> list[Design]:
    """At most `top` networks for images (C, H, W), under `limits` (a number: of parameters), the best by `score` first.

    All but their blocks, channels and pool is `base`'s. Each is the best of a range of MACs, and none that is cheaper
    is better. Raises UserError where nothing fits.
    """
    limits = limits if isinstance(limits, Budget) else Budget(params=limits)
    return ladder(candidates(limits, image_shape, classes, base), top)


def pick(limits: Budget, image_shape: tuple[int, int, int], classes: int) -> ResNetConfig:
    """The best by `score` that costs no more MACs than the paper's small shape (two blocks a layer, channels that
    double) under the same limits, so that training it is affordable. Raises UserError where nothing fits."""
    found = candidates(limits, image_shape, classes)
    plain = fill(_shape((2,) * most_layers(image_shape), 2, PLAIN), limits, image_shape, classes)
    most = max(counts(plain, image_shape, classes).macs if plain else 0, min(each.counts.macs for each in found))
    return max((each for each in found if each.counts.macs <= most), key=lambda each: each.score).config


def candidates(
    limits: Budget, image_shape: tuple[int, int, int], classes: int, base: ResNetConfig = PLAIN
) -> list[Design]:
    """Every shape of the family that fits, as wide as may be. Raises UserError where none does."""
    if not any(map(limits.limit, SUMMED)):
        raise UserError("no limit to fill: give --budget 5M, or one of budget.macs, budget.bytes_fp32 and the like")
    if isinstance(base.kernels, tuple) or isinstance(base.skip_kernels, tuple):
        raise UserError("model.kernels and model.skip_kernels: one number each, for the number of layers is open")
    filled = filter(None, (fill(shape, limits, image_shape, classes) for shape in _shapes(image_shape, base)))
    found = [Design(each, of := counts(each, image_shape, classes), score(each, of)) for each in filled]
    if not found:
        under = ", ".join(f"{key} {value}" for key, value in structs.asdict(limits).items() if value != "")
        ones = (1,) * max(most_layers(image_shape) - 1, 1)
        least = counts(structs.replace(_shape(ones, 1, base), channels=ones), image_shape, classes).params
        images = f"{image_shape[1]}x{image_shape[2]} images and {classes} classes"
        raise UserError(
            f"budget: no residual network for {images} is under {under}; the least has {least:,} parameters"
        )
    return found


def ladder(found: Sequence[Design], top: int) -> list[Design]:
    """The best of each of `top` equal ranges of log MACs, less those that a cheaper one beats; the best first."""
    front: list[Design] = []
    for each in sorted(found, key=lambda each: (each.counts.macs, -each.score)):
        if not front or each.score > front[-1].score:
            front.append(each)
    logs = [math.log(each.counts.macs) for each in front]
    rungs = {
        int(top * (log - logs[0]) / (logs[-1] - logs[0] + 1e-9)): each for log, each in zip(logs, front, strict=True)
    }
    return list(rungs.values())[::-1]


def score(config: ResNetConfig, weighed: Counts) -> float:
    """Higher is better; at equal depth, one more is twice the MACs or parameters. Made up for this family: what it
    costs, and a depth that neither starves nor resists a training.

    Spearman's rank correlation with the accuracies of networks that were trained alike: 0.95 over Table 4 of
    Zagoruyko and Komodakis 2016 (10 Wide ResNets in full), 0.71 over 13 of the pilot in docs/results, 0.70 over 9
    of a search's trials at equal MACs; for MACs alone 0.90, 0.50 and -0.25. The 12 was chosen on these. DeepMAD's
    entropy (Shen et al. 2023) comes to 0.79, 0.87 and 0.48 under the bound on depth / width that suits it best, and
    next to nothing without one.
    """
    convolutions = 1 + 2 * sum(config.blocks)
    return math.log2(weighed.macs * weighed.params) - math.log2(convolutions / 12) ** 2


def _shapes(image_shape: tuple[int, int, int], base: ResNetConfig) -> Iterator[ResNetConfig]:
    """Any blocks and growth, of as many layers as leave a last map of SMALLEST_MAP or more, or of one fewer."""
    most = most_layers(image_shape)
    for layers in range(max(most - 1, 1), most + 1):
        for blocks in product(*[(1,)] * (layers - FREE), *[BLOCKS] * min(layers, FREE)):
            yield from (_shape(blocks, growth, base) for growth in GROWTHS[: len(GROWTHS) if layers > 1 else 1])


def _shape(blocks: tuple[int, ...], growth: float, base: ResNetConfig) -> ResNetConfig:
    channels = tuple(round(64 * growth**layer) for layer in range(len(blocks)))
    return structs.replace(base, blocks=blocks, channels=channels, stem_channels=0, pool="global")


def most_layers(image_shape: tuple[int, int, int]) -> int:
    """So many leave a last map of SMALLEST_MAP or more; sides halve upwards."""
    return max(math.ceil(math.log2(min(image_shape[1:]) / (SMALLEST_MAP - 1))), 1)
