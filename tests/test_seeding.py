"""The counter hash: golden numbers, equality with its plain twin, and the statistics that draws rely on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import plain_hash
from weightclass.seeding import bits, drawn, integers, key, permutation, uniform, words

KEYS = st.integers(0, 2**64 - 1)
SLOTS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8)
COUNT = 1 << 16
EVERY = torch.arange(COUNT)

# --- golden values: if one changes, every published number changes -------------------------------------------


def test_golden_key() -> None:
    assert key(0, "flip", 7) == 3002401464800682833
    assert key(1, "order") == 9529400125937972882


def test_golden_draws() -> None:
    k = key(0, "flip", 7)
    assert bits(k, torch.arange(3), 2).tolist() == [
        [2291383800, 3642347950, 1315347303],
        [1904142085, 4010270496, 3663477968],
    ]
    assert uniform(k, torch.arange(3))[0].tolist() == [0.53350430727005, 0.8480501770973206, 0.3062531352043152]
    assert integers(k, torch.arange(8), -4, 4)[0].tolist() == [0, 3, -2, 1, 3, 4, -2, 3]
    assert permutation(k, 8).tolist() == [6, 2, 0, 3, 1, 7, 4, 5]


# --- the plain twin ----------------------------------------------------------------------------------------


@given(KEYS, SLOTS, st.integers(1, 4))
def test_bits_and_uniform_equal_the_plain_twin(k: int, slots: list[int], draws: int) -> None:
    place = torch.tensor(slots)
    assert bits(k, place, draws).tolist() == [[plain_hash.bits(k, s, d) for s in slots] for d in range(draws)]
    assert uniform(k, place, draws).tolist() == [[plain_hash.uniform(k, s, d) for s in slots] for d in range(draws)]


@given(KEYS, SLOTS, st.integers(1, 3), st.integers(0, 5))
def test_a_stream_goes_on_and_a_key_may_be_a_tensor(k: int, slots: list[int], draws: int, first: int) -> None:
    place, signed = torch.tensor(slots), k - 2**64 if k >= 2**63 else k
    whole = bits(k, place, first + draws)
    assert torch.equal(drawn(words(k, place), draws, first), whole[first:])
    assert torch.equal(drawn(words(torch.tensor(signed), place), draws, first), whole[first:])


@given(KEYS, SLOTS, st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**31 - 1))
def test_integers_equal_the_plain_twin(k: int, slots: list[int], low: int, width: int) -> None:
    drawn = integers(k, torch.tensor(slots), low, low + width)[0].tolist()
    assert drawn == [plain_hash.integer(k, s, 0, low, low + width) for s in slots]
    assert all(low <= value <= low + width for value in drawn)


@given(KEYS, st.integers(0, 300))
def test_permutation_equals_the_plain_twin(k: int, count: int) -> None:
    order = permutation(k, count).tolist()
    assert order == plain_hash.permutation(k, count)
    assert sorted(order) == list(range(count))


# --- a function of place and time --------------------------------------------------------------------------


@given(KEYS, st.integers(0, 64), st.integers(0, 64), st.integers(1, 5))
def test_a_slice_of_the_slots_sees_the_same_draws(k: int, start: int, length: int, draws: int) -> None:
    whole = uniform(k, torch.arange(128), draws)
    assert torch.equal(uniform(k, torch.arange(start, start + length), draws), whole[:, start : start + length])


@given(KEYS, st.integers(1, 5), st.integers(1, 5))
def test_more_draws_leave_the_first_as_they_were(k: int, few: int, more: int) -> None:
    assert torch.equal(bits(k, EVERY[:16], few + more)[:few], bits(k, EVERY[:16], few))


def test_slots_of_any_shape() -> None:
    grid = torch.arange(24).view(2, 3, 4)
    assert torch.equal(uniform(5, grid, 3), uniform(5, grid.flatten(), 3).view(3, 2, 3, 4))
    assert uniform(5, torch.tensor(3)).shape == (1,)


def test_shapes_and_types() -> None:
    assert (bits(1, EVERY[:4], 2).shape, bits(1, EVERY[:4]).dtype) == ((2, 4), torch.int64)
    assert uniform(1, EVERY[:4]).dtype == torch.float32
    assert integers(1, EVERY[:4], 0, 9).dtype == torch.int64


def test_every_part_of_a_key_counts() -> None:
    keys = [key(seed, name, *at) for seed in range(9) for name in ("flip", "crop") for at in ((), (0,), (1,), (0, 1))]
    assert len(set(keys)) == len(keys) == 72
    assert all(0 <= k < 2**64 for k in keys)


# --- statistics: 65,536 draws each; every bound is four to five standard deviations -------------------------

NAMES = ["flip", "crop", "order", "mixup"]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


@pytest.mark.parametrize("name", NAMES)
def test_uniform_is_uniform(name: str) -> None:
    u = uniform(key(0, name), EVERY, 2).double()
    assert u.min() >= 0
    assert u.max() < 1
    assert u[0].mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / COUNT))
    cells = torch.histc(u[0], bins=256, min=0, max=1)
    chi_square = ((cells - COUNT / 256) ** 2 / (COUNT / 256)).sum().item()
    assert chi_square == pytest.approx(255, abs=5 * math.sqrt(2 * 255))


@pytest.mark.parametrize("name", NAMES)
def test_neighbours_in_place_draw_time_and_seed_are_independent(name: str) -> None:
    u = uniform(key(0, name, 1), EVERY, 2)
    others = {
        "place": u[0].roll(1),
        "draw": u[1],
        "time": uniform(key(0, name, 2), EVERY)[0],
        "seed": uniform(key(1, name, 1), EVERY)[0],
        "purpose": uniform(key(0, name + "2", 1), EVERY)[0],
    }
    limit = 5 / math.sqrt(COUNT)
    assert {axis: c for axis, other in others.items() if abs(c := correlation(u[0], other)) > limit} == {}


def test_every_bit_is_fair() -> None:
    drawn = bits(key(0, "bits"), EVERY)[0]
    ones = torch.stack([drawn >> place & 1 for place in range(32)]).double().mean(1)
    assert (ones - 0.5).abs().max().item() < 5 * 0.5 / math.sqrt(COUNT)


def test_integers_take_both_ends_and_all_between_equally() -> None:
    counts = torch.bincount(integers(key(0, "crop"), EVERY, -4, 4)[0] + 4, minlength=9).double()
    spread = math.sqrt(COUNT / 9 * 8 / 9)
    assert (counts - COUNT / 9).abs().max().item() < 5 * spread


def test_permutations_are_shuffled_and_differ_by_epoch() -> None:
    first, second = (permutation(key(0, "order", epoch), 50_000).double() for epoch in (0, 1))
    limit = 5 / math.sqrt(50_000)
    assert abs(correlation(first, torch.arange(50_000).double())) < limit
    assert abs(correlation(first, second)) < limit
    fixed_points = (first == torch.arange(50_000)).sum().item()
    assert fixed_points <= 6  # Poisson(1)
