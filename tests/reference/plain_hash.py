"""weightclass.seeding in plain Python: one slot and one draw at a time, arbitrary integers cut to 32 bits."""

from __future__ import annotations


def mix(x: int) -> int:
    """lowbias32 (C. Wellons, Hash Function Prospector) as published, in arithmetic modulo 2^32."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def bits(key: int, slot: int, draw: int) -> int:
    low, high = key % 2**32, key >> 32
    word = mix(mix(slot ^ low) ^ high)
    return mix((word + mix((draw + 0x9E3779B9) % 2**32)) % 2**32)


def uniform(key: int, slot: int, draw: int) -> float:
    return (bits(key, slot, draw) // 2**8) / 2**24


def integer(key: int, slot: int, draw: int, low: int, high: int) -> int:
    return low + bits(key, slot, draw) * (high - low + 1) // 2**32


def permutation(key: int, count: int) -> list[int]:
    return sorted(range(count), key=lambda slot: bits(key, slot, 0))
