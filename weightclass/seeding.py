"""Randomness as a function of place and time: a counter hash instead of generators.

`uniform(key(seed, purpose, step), slots)` gives each slot (an image's place in the *global* batch) its own
numbers. Integer tensor arithmetic only, so CPU and CUDA, eager and compiled, one rank or many, whole batch or
micro-batches all see the same draws; nothing is saved and nothing restored: a resumed run is the same run.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
# "lowbias32" (C. Wellons, Hash Function Prospector). The second multiplier is written modulo 2^32 as a negative
# number so that a product of a 32-bit word never leaves int64.
_MULTIPLY = (0x7FEB352D, 0x846CA68B - 2**32)


def key(seed: int, purpose: str, *counters: int) -> int:
    """A 64-bit key for one purpose at one place in the run, for example `key(0, "flip", step)`."""
    text = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * _MULTIPLY[0]) & _MASK
    x = ((x ^ (x >> 15)) * _MULTIPLY[1]) & _MASK
    return x ^ (x >> 16)


def words(key: int | Tensor, slots: Tensor) -> Tensor:
    """What `bits` makes of each slot before it looks at the draw, int64 like `slots`.

    A compiled graph takes the key as a tensor (int64 []: the same bits), so that it is not compiled anew for each.
    """
    return _mix(_mix(slots ^ (key & _MASK)) ^ (key >> 32 & _MASK))


def drawn(words: Tensor, draws: int, first: int = 0) -> Tensor:
    """The `draws` random bits from the `first` on, int64 [draws, *words.shape]."""
    draw = torch.arange(first, first + draws, device=words.device).view(-1, *[1] * words.ndim)
    return _mix(words + _mix(draw + 0x9E3779B9) & _MASK)


def bits(key: int, slots: Tensor, draws: int = 1) -> Tensor:
    """32 random bits as int64 [draws, *slots.shape] for int64 `slots` below 2^32."""
    return drawn(words(key, slots), draws)


def uniform(key: int, slots: Tensor, draws: int = 1) -> Tensor:
    """float32 [draws, *slots.shape] in [0, 1): multiples of 2^-24, so exact on every device."""
    return (bits(key, slots, draws) >> 8).float() * 2.0**-24


def integers(key: int, slots: Tensor, low: int, high: int, draws: int = 1) -> Tensor:
    """int64 [draws, *slots.shape] in [low, high]; both ends included."""
    return low + (bits(key, slots, draws) * (high - low + 1) >> 32)


def permutation(key: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """int64 [count]: the order of `range(count)` by hash, ties by index."""
    return torch.argsort(bits(key, torch.arange(count, device=device))[0], stable=True)
