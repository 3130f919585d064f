"""How a network may be made int8: the ladder from the fastest setting to the safest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
from msgspec import structs


class Rung(msgspec.Struct, frozen=True, kw_only=True):
    """A setting of static int8: weights signed, activations unsigned where the format has both, the head in float."""

    per_channel: bool = True
    """A scale for each output channel of a weight, not one for all."""
    reduce_range: bool = False
    """Weights of 7 bits: what adds pairs of products in 16 bits (x86 without VNNI) then cannot overflow."""
    float_layers: tuple[str, ...] = ()
    """Layers of `Shipped` that stay in float32, beside the head."""

    def __str__(self) -> str:
        parts = ["a scale a channel" if self.per_channel else "a scale a tensor"]
        parts += ["7-bit weights"] if self.reduce_range else []
        parts += [f"{len(self.float_layers)} more layers in float"] if self.float_layers else []
        return ", ".join(parts)


def ladder(first: Rung, ranked: Callable[[], Sequence[str]]) -> Iterator[Rung]:
    """From `first` to ever safer settings; `ranked` names the layers that suffer most, and is asked late.

    A scale a channel, then 7-bit weights, then with the full range again one more layer in float, 2, 4, 8 ..., all.
    """
    yield first
    if not first.per_channel:
        yield (first := structs.replace(first, per_channel=True))
    if not first.reduce_range:
        yield structs.replace(first, reduce_range=True)
    layers = [name for name in ranked() if name not in first.float_layers]
    counts = [2**power for power in range(len(layers).bit_length()) if 2**power < len(layers)]
    for count in (*counts, len(layers)):
        yield structs.replace(first, float_layers=(*first.float_layers, *layers[:count]))
