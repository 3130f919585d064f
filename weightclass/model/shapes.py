"""What a residual network weighs, in closed form (microseconds, as `budget.weigh` has it), and how wide it may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec import structs

from weightclass.model import budget, networks
from weightclass.model.budget import SUMMED, Budget
from weightclass.model.resnet import ResNetConfig, map_sizes, per_layer, pooled_area

CLOSE, WIDEST = 0.995, 65_536
"""The share of the binding limit that rounder channels must reach, and the most channels of a layer."""
Widths = Sequence[float]
"""The layers' channels, and the stem's where it has its own."""


class Counts(NamedTuple):
    """`budget.Figures` less the activations, which only a run can tell."""

    params: int
    macs: int
    bytes_fp32: int
    bytes_fp16: int
    bytes_int8: int


def counts(config: ResNetConfig, image_shape: tuple[int, int, int], classes: int) -> Counts:
    """What `budget.weigh` says of the network for images (C, H, W). Raises UserError for a shape that cannot work."""
    return _scales(config, image_shape, classes)(_widths(config))


def fill(
    config: ResNetConfig, limits: Budget, image_shape: tuple[int, int, int], classes: int, multiple: int = 4
) -> ResNetConfig | None:
    """`config` as wide as every limit admits, its channels' proportions kept as near as may be; None where even the
    narrowest does not fit. Raises UserError for a shape that cannot work.

    Channels are multiples of `multiple`; of a half, a quarter of it ... where those leave over 0.5 % of the limit that
    binds. Activations are not steered by: a network over their limit is None.
    """
    bounds = [(i, bound) for i, key in enumerate(SUMMED) if (bound := limits.limit(key)) is not None]
    weigh, shares, layers = _scales(config, image_shape, classes), _widths(config), len(config.blocks)

    def used(widths: Widths) -> float:
        figures = weigh(widths)
        return max(figures[i] / bound for i, bound in bounds)

    if bounds:
        scale, step, widths = _scale(shares, used), multiple, None
        while step and (widths is None or used(widths) < CLOSE):
            widths, step = _widen(shares, scale, step, used) or widths, step // 2
        if widths is None:
            return None
        config = structs.replace(config, channels=tuple(widths[:layers]), stem_channels=sum(widths[layers:]))
    if (most := limits.limit("activations")) is not None:
        live = budget.weigh(networks.build(config, image_shape, classes), image_shape).activations
        return config if live < most else None
    return config


def _scale(shares: Widths, used: Callable[[Widths], float]) -> float:
    """The largest scale of `shares`, fractions of channels allowed, that fits: bisected to a thousandth of itself."""
    low, high = -math.log2(max(shares)), math.log2(WIDEST / max(shares))
    while high - low > 0.001:
        middle = (low + high) / 2
        low, high = (middle, high) if used([max(share * 2**middle, 1) for share in shares]) < 1 else (low, middle)
    return 2**low


def _widen(shares: Widths, scale: float, step: int, used: Callable[[Widths], float]) -> list[int] | None:
    """Multiples of `step`: those below the scale, then a step at a time for the layer that is most behind its share of
    those that still fit."""
    widths = [max(int(share * scale) // step * step, step) for share in shares]
    if used(widths) >= 1:
        return None
    while True:
        for i in sorted(range(len(widths)), key=lambda i: widths[i] / shares[i]):
            widths[i] += step
            if widths[i] <= WIDEST and used(widths) < 1:
                break
            widths[i] -= step
        else:
            return widths


def _widths(config: ResNetConfig) -> tuple[int, ...]:
    return config.channels + ((config.stem_channels,) if config.stem_channels else ())


def _scales(config: ResNetConfig, image_shape: tuple[int, int, int], classes: int) -> Callable[[Widths], Counts]:
    """From widths to counts; what does not depend on them is found once."""
    pooled, layers, reduction = pooled_area(config, image_shape), len(config.blocks), config.se_reduction
    areas = [height * width for height, width in map_sizes(image_shape, layers)]
    kernels, skips = ([k * k for k in per_layer(each, layers)] for each in (config.kernels, config.skip_kernels))
    rows = list(zip(config.blocks, areas, kernels, skips, strict=True))
    normed, before, whole = config.norm == "batch", bool(config.preactivation), config.preactivation is True

    def weigh(widths: Widths) -> Counts:
        inputs = widths[-1] if len(widths) > layers else widths[0]
        weights, outputs = image_shape[0] * config.stem_kernel**2 * inputs, inputs  # of convolutions on maps
        macs, dense, biased = weights * areas[0], 0, classes  # dense: weights used once; biased: outputs even if normed
        kept, bare = 0, inputs if whole else 0  # channels of norms that no convolution takes; that have no norm after
        if config.se == "stem":
            squeezed = max(inputs // reduction, 1)
            dense, biased = 2 * inputs * squeezed, biased + inputs + squeezed
        for i, (width, (blocks, area, kernel, skip)) in enumerate(zip(widths, rows, strict=False)):
            projected = i > 0 or inputs != width
            layer = kernel * width * (inputs + (2 * blocks - 1) * width) + projected * skip * inputs * width
            weights, macs, outputs = weights + layer, macs + layer * area, outputs + (2 * blocks + projected) * width
            if before:
                kept += inputs + (blocks - 1) * width
                bare += (blocks + (whole and projected)) * width
            if config.se == "blocks":
                squeezed = max(width // reduction, 1)
                dense, biased = dense + 2 * blocks * width * squeezed, biased + blocks * (width + squeezed)
            inputs = width
        kept, dense = kept + (inputs if whole else 0), dense + classes * pooled * inputs
        kept, norms = (kept, outputs - bare + kept) if normed else (0, 0)
        params = weights + dense + biased + (0 if normed else outputs) + 2 * norms
        floats, int8 = params + 2 * norms, weights + dense + 8 * (outputs + biased + kept)
        return Counts(params, macs + dense, 4 * floats, 2 * floats, int8)  # type: ignore[arg-type]

    return weigh
