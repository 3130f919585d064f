"""Mixing equals its plain twins in every pixel, and the tables are the distributions that they stand for."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.reference import plain_mix
from weightclass import seeding
from weightclass.augment import mix

CLASSES = 4
SHAPES = st.tuples(st.integers(0, 6), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
SEEDS = st.integers(0, 2**32)


def drawn(seed: int, shape: tuple[int, ...], low: int, high: int) -> Tensor:
    count = torch.Size(shape).numel()
    return seeding.integers(seeding.key(seed, "test"), torch.arange(count), low, high)[0].view(shape)


def batch(seed: int, shape: tuple[int, ...], channels_last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Images, probabilities, and partners of any kind."""
    images = drawn(seed, shape, 0, 255).to(torch.uint8)
    images = images.to(memory_format=torch.channels_last) if channels_last else images
    targets = drawn(seed + 1, (shape[0], CLASSES), 1, 100).float()
    return images, targets / targets.sum(1, keepdim=True), drawn(seed + 2, shape[:1], 0, max(shape[0] - 1, 0))


def assert_mixed(
    ours: tuple[Tensor, Tensor], twins: list[tuple[np.ndarray, Fraction]], targets: Tensor, partner: Tensor
) -> None:
    assert ours[0].dtype == torch.uint8 and ours[1].dtype == torch.float32
    assert len(ours[0]) == len(ours[1]) == len(twins)
    for place, (picture, share) in enumerate(twins):
        np.testing.assert_array_equal(ours[0][place].numpy(), picture)
        expected = plain_mix.targets(targets[place].tolist(), targets[int(partner[place])].tolist(), share)
        assert ours[1][place].tolist() == pytest.approx(expected, rel=1e-6)


@given(shape=SHAPES, seed=SEEDS, channels_last=st.booleans())
def test_mixup(shape: tuple[int, ...], seed: int, channels_last: bool) -> None:
    images, targets, partner = batch(seed, shape, channels_last)
    share = seeding.uniform(seeding.key(seed, "share"), torch.arange(shape[0]))[0]
    before = images.clone(), targets.clone(), share.clone()
    pictures = images.numpy()
    twins = [plain_mix.mixup(pictures[i], pictures[int(p)], share[i].item()) for i, p in enumerate(partner)]
    assert_mixed(mix.mixup(images, targets, share, partner), twins, targets, partner)
    assert all(map(torch.equal, (images, targets, share), before))


def test_mixup_of_all_levels_is_within_half_a_level() -> None:
    """65,536 pairs of levels: the steps of 2^-16 cost at most 2^-9 of a level more."""
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 1, 256, 256)
    one, other = levels, levels.mT
    share = torch.tensor([1 / 3, 0.9])
    mixed, _ = mix.mixup(torch.cat([one, other]), torch.eye(2), share, torch.tensor([1, 0]))
    for ours, own, its, kept in zip(mixed, (one, other), (other, one), share.double(), strict=True):
        assert (ours - (kept * own + (1 - kept) * its)).abs().max() <= 0.5 + 2**-9


@given(shape=SHAPES, seed=SEEDS, channels_last=st.booleans())
def test_cutmix(shape: tuple[int, ...], seed: int, channels_last: bool) -> None:
    images, targets, partner = batch(seed, shape, channels_last)
    before = images.clone(), targets.clone()
    boxes = drawn(seed + 3, (4, shape[0]), -4, 12)
    pictures, columns = images.numpy(), boxes.T.tolist()
    twins = [plain_mix.cutmix(pictures[i], pictures[int(p)], *columns[i]) for i, p in enumerate(partner)]
    assert_mixed(mix.cutmix(images, targets, *boxes, partner), twins, targets, partner)
    assert all(map(torch.equal, (images, targets), before))


@given(shape=SHAPES, seed=SEEDS)
def test_alone_or_whole_is_unchanged(shape: tuple[int, ...], seed: int) -> None:
    images, targets, partner = batch(seed, shape, False)
    alone, whole, none = torch.arange(shape[0]), torch.ones(shape[0]), torch.zeros(4, shape[0], dtype=torch.int64)
    share, boxes = seeding.uniform(seed, alone)[0], drawn(seed, (4, shape[0]), 0, 9)
    for mixed in (
        mix.mixup(images, targets, share, alone),
        mix.mixup(images, targets, whole, partner),
        mix.cutmix(images, targets, *boxes, alone),
        mix.cutmix(images, targets, *none, partner),
    ):
        assert torch.equal(mixed[0], images) and torch.equal(mixed[1], targets)


@given(
    share=st.integers(0, 4096),
    place=st.tuples(st.integers(0, 11), st.integers(0, 11)),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_box(share: int, place: tuple[int, int], size: tuple[int, int]) -> None:
    row, column = place[0] % size[0], place[1] % size[1]
    ours = mix.box(torch.tensor([share / 4096]), torch.tensor([row]), torch.tensor([column]), *size)
    assert tuple(int(number) for number in ours) == plain_mix.box(Fraction(share, 4096), row, column, *size)
    assert {number.dtype for number in ours} == {torch.int64}


def test_a_box_in_the_middle_leaves_its_share() -> None:
    share, middle = torch.tensor([0.0, 0.4375, 0.75, 1.0]), torch.full((4,), 16)
    targets = torch.eye(2)[[0, 1, 0, 1]]
    _, mixed = mix.cutmix(
        torch.zeros(4, 3, 32, 32, dtype=torch.uint8), targets, *mix.box(share, middle, middle, 32, 32), middle // 16 ^ 1
    )
    assert mixed[[0, 2], 0].tolist() == [1.0, 1.0]  # partner 0 has the same label
    assert mixed[[1, 3], 1].tolist() == [0.4375, 1.0]


@given(st.lists(st.integers(0, 20), unique=True, max_size=12))
def test_partners_among_any_slots(slots: list[int]) -> None:
    assert mix.partners(torch.tensor(slots, dtype=torch.int64)).tolist() == plain_mix.partners(slots)


@given(st.integers(1, 40), st.integers(1, 20))
def test_partners_are_the_same_in_parts_of_whole_pairs(count: int, pairs: int) -> None:
    parts = torch.arange(count).split(2 * pairs)
    whole = torch.cat([part[mix.partners(part)] for part in parts])
    assert torch.equal(whole, mix.partners(torch.arange(count)))
    assert whole.tolist() == [slot ^ 1 if slot ^ 1 < count else slot for slot in range(count)]


def test_nothing_waits_for_a_value() -> None:
    """Tensors without data have the shapes alone: whatever asks for a value raises."""
    images, share = torch.empty(5, 3, 8, 9, dtype=torch.uint8, device="meta"), torch.empty(5, device="meta")
    targets, places = share.unsqueeze(1).expand(5, 7), torch.empty(5, dtype=torch.int64, device="meta")
    boxes = mix.box(share, places, places, 8, 9)
    partner = mix.partners(places)
    for mixed in (mix.mixup(images, targets, share, partner), mix.cutmix(images, targets, *boxes, partner)):
        assert [part.shape for part in mixed] == [images.shape, targets.shape]


# --- tables ------------------------------------------------------------------------------------------------


def closed(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


@pytest.mark.parametrize(
    ("alpha", "beta", "inverse"),
    [
        (1.0, 1.0, lambda p: p),
        (1.0, 2.0, lambda p: 1 - np.sqrt(1 - p)),
        (0.2, 1.0, lambda p: p**5),
        (0.5, 0.5, lambda p: np.sin(np.pi * p / 2) ** 2),
    ],
)
def test_beta_quantiles_where_they_have_a_formula(alpha: float, beta: float, inverse) -> None:
    table = mix.beta_quantiles(alpha, beta)
    assert table.dtype == torch.float32 and len(table) == 4096
    np.testing.assert_allclose(table.numpy(), inverse(closed(4096)), rtol=2e-7)


def test_gamma_quantiles_where_they_have_a_formula() -> None:
    np.testing.assert_allclose(mix.gamma_quantiles(1.0, 1000).numpy(), -np.log1p(-closed(1000)), rtol=2e-7)


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.2), (1.0, 1.0), (0.4, 3.0), (8.0, 8.0)])
def test_beta_draws_follow_the_distribution(alpha: float, beta: float) -> None:
    from scipy.stats import beta as distribution

    table, truth = mix.beta_quantiles(alpha, beta), distribution(alpha, beta)
    draws = table[seeding.integers(seeding.key(0, "beta"), torch.arange(20_000), 0, 4095)[0]]
    assert table.mean().item() == pytest.approx(truth.mean(), rel=1e-3)
    assert table.var().item() == pytest.approx(truth.var(), rel=2e-3)
    points = np.linspace(0.001, 0.999, 40)  # nearer to 1 the steps of float32 are wide
    assert plain_mix.gap(table.numpy(), truth.cdf, points) <= 0.5 / 4096 + 1e-6
    assert plain_mix.gap(draws.numpy(), truth.cdf, points) <= 1.63 / 20_000**0.5  # 1 % of fair samples lie further away


@pytest.mark.parametrize("alpha", [0.1, 1.0, 2.5])
def test_gamma_draws_make_dirichlet_draws(alpha: float) -> None:
    from scipy.stats import beta as distribution

    table = mix.gamma_quantiles(alpha)
    assert table.mean().item() == pytest.approx(alpha, rel=2e-3)
    draws = table[seeding.integers(seeding.key(0, "gamma"), torch.arange(20_000), 0, 4095, 3)]
    shares = draws / draws.sum(0)
    assert shares.isfinite().all()
    truth = distribution(alpha, 2 * alpha)  # what one of three shares follows
    assert shares.mean(1).tolist() == pytest.approx([1 / 3] * 3, abs=0.01)
    assert shares.var(1).tolist() == pytest.approx([truth.var()] * 3, rel=0.05)
    assert plain_mix.gap(shares[0].numpy(), truth.cdf, np.linspace(0.001, 0.999, 40)) <= 1.63 / 20_000**0.5


def test_no_gamma_draw_is_zero() -> None:
    assert mix.gamma_quantiles(0.01).min() > 0
