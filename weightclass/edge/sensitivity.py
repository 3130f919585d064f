"""Which layers suffer most from int8: each alone is rounded, and the logits show what it cost."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightclass.edge.shipped import Shipped


@torch.no_grad()
def ranking(shipped: Shipped, images: Tensor) -> list[str]:
    """The convolutions of `shipped`, that first whose rounding moves the logits of `images` (uint8) most.

    Weights are rounded to int8 with a scale a channel, the layer's inputs to uint8 with one scale: what every int8
    format does at least. The order is what counts, not the sizes.
    """
    reference = shipped(images)
    harm = {name: _alone(shipped, name, images, reference) for name in shipped.layers}
    return sorted(harm, key=lambda name: -harm[name])


def _alone(shipped: Shipped, name: str, images: Tensor, reference: Tensor) -> float:
    layer = shipped.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    kept = layer.weight.data
    layer.weight.data = rounded(kept, kept.abs().amax((1, 2, 3), keepdim=True) / 127)
    hook = layer.register_forward_pre_hook(lambda _, inputs: (_levels(inputs[0]),))
    try:
        return float((shipped(images) - reference).abs().mean())
    finally:
        hook.remove()
        layer.weight.data = kept


def rounded(values: Tensor, step: Tensor) -> Tensor:
    """To the nearest multiple of `step`; where that is 0, the values are too."""
    return (values / step.clamp_min(torch.finfo(step.dtype).tiny)).round() * step


def _levels(x: Tensor) -> Tensor:
    """256 levels between the smallest and the largest value, of which 0 is one."""
    return rounded(x, (x.amax().clamp_min(0) - x.amin().clamp_max(0)) / 255)
