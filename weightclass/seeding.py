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


def bits(key: int, slots: Tensor, draws: int = 1) -> Tensor:
    """32 random bits as int64 [draws, *slots.shape] for int64 `slots` below 2^32."""
    draw = torch.arange(draws, device=slots.device).view(-1, *[1] * slots.ndim)
    word = _mix(slots.unsqueeze(0) ^ (key & _MASK))
    return _mix(_mix(word ^ (key >> 32)) + _mix(draw + 0x9E3779B9) & _MASK)


def uniform(key: int, slots: Tensor, draws: int = 1) -> Tensor:
    """float32 [draws, *slots.shape] in [0, 1): multiples of 2^-24, so exact on every device."""
    return (bits(key, slots, draws) >> 8).float() * 2.0**-24


def integers(key: int, slots: Tensor, low: int, high: int, draws: int = 1) -> Tensor:
    """int64 [draws, *slots.shape] in [low, high]; both ends included."""
    return low + (bits(key, slots, draws) * (high - low + 1) >> 32)


def permutation(key: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """int64 [count]: the order of `range(count)` by hash, ties by index."""
    return torch.argsort(bits(key, torch.arange(count, device=device))[0], stable=True)
