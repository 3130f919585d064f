"""Every operation equals its plain twin pixel for pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.reference import plain_augment
from weightclass import seeding
from weightclass.augment import ops

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
SEEDS = st.integers(0, 2**32)


def drawn(seed: int, shape: tuple[int, ...], low: int, high: int) -> Tensor:
    count = torch.Size(shape).numel()
    return seeding.integers(seeding.key(seed, "test"), torch.arange(count), low, high)[0].view(shape)


def pictures(seed: int, shape: tuple[int, ...], channels_last: bool = False) -> Tensor:
    images = drawn(seed, shape, 0, 255).to(torch.uint8)
    return images.to(memory_format=torch.channels_last) if channels_last else images


def assert_same(ours: Tensor, twins: list[np.ndarray]) -> None:
    assert ours.dtype == torch.uint8
    np.testing.assert_array_equal(ours.numpy(), np.stack(twins))


@given(shape=SHAPES, seed=SEEDS, channels_last=st.booleans())
def test_flip(shape: tuple[int, ...], seed: int, channels_last: bool) -> None:
    images = pictures(seed, shape, channels_last)
    before = images.clone()
    mirrored = drawn(seed + 1, shape[:1], 0, 1).bool()
    twins = [plain_augment.flip(image, bool(m)) for image, m in zip(images.numpy(), mirrored, strict=True)]
    assert_same(ops.flip(images, mirrored), twins)
    assert torch.equal(images, before)


@given(shape=SHAPES, seed=SEEDS, channels_last=st.booleans(), far=st.integers(0, 12))
def test_crop_over_zeros(shape: tuple[int, ...], seed: int, channels_last: bool, far: int) -> None:
    images = pictures(seed, shape, channels_last)
    before = images.clone()
    down, right = drawn(seed + 1, (2, shape[0]), -far, far)
    twins = [
        plain_augment.crop(image, int(d), int(r), "zero")
        for image, d, r in zip(images.numpy(), down, right, strict=True)
    ]
    assert_same(ops.crop(images, down, right, max(far, 1)), twins)
    assert torch.equal(images, before)


@given(shape=SHAPES, seed=SEEDS, channels_last=st.booleans())
def test_crop_over_the_reflection(shape: tuple[int, ...], seed: int, channels_last: bool) -> None:
    n, _, h, w = shape
    images = pictures(seed, shape, channels_last)
    padding = min(h, w) - 1
    down, right = drawn(seed + 1, (2, n), -padding, padding)
    twins = [
        plain_augment.crop(image, int(d), int(r), "reflect")
        for image, d, r in zip(images.numpy(), down, right, strict=True)
    ]
    assert_same(ops.crop(images, down, right, padding, "reflect"), twins)


@given(shape=SHAPES, seed=SEEDS, channels_last=st.booleans())
def test_erase(shape: tuple[int, ...], seed: int, channels_last: bool) -> None:
    images = pictures(seed, shape, channels_last)
    before = images.clone()
    top, left = drawn(seed + 1, (2, shape[0]), -12, 10)
    height, width = drawn(seed + 2, (2, shape[0]), 0, 12)
    fill = drawn(seed + 3, shape[1:2], 0, 255)
    boxes = zip(images.numpy(), top.tolist(), left.tolist(), height.tolist(), width.tolist(), strict=True)
    twins = [plain_augment.erase(image, *box, fill.tolist()) for image, *box in boxes]
    assert_same(ops.erase(images, top, left, height, width, fill.to(torch.uint8)), twins)
    assert torch.equal(images, before)


@settings(max_examples=20)
@given(kinds=st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_each_image_gets_its_own_operation_and_a_cpu_computes_no_other(kinds: list[int]) -> None:
    kind, images, seen = torch.tensor(kinds), pictures(0, (len(kinds), 2, 3, 4)), list[int]()
    strength = torch.arange(len(kinds), dtype=torch.uint8)

    def add(part: Tensor, strength: Tensor) -> Tensor:
        seen.append(len(part))
        return part + strength.view(-1, 1, 1, 1)

    operations = (None, add, lambda part, _: part.flip(3))
    expected = [[i, i + s, i.flip(2)][k] for i, s, k in zip(images, strength, kinds, strict=True)]
    assert torch.equal(ops.each_its_own(kind, operations, images, strength), torch.stack(expected))
    assert sum(seen) == kinds.count(1)
    torch.compiler.reset()
    masked = torch.compile(ops.each_its_own, backend="eager", fullgraph=True)
    assert torch.equal(masked(kind, operations, images, strength), torch.stack(expected))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalise(channels: int) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, channels, 1, 1)
    mean, std = [0.5, 0.45, 0.0, 1.0][:channels], [0.25, 0.2, 1.0, 0.01][:channels]
    ours = ops.normalise(images, torch.tensor(mean), torch.tensor(std))
    twins = np.stack([plain_augment.normalise(image, mean, std) for image in images.numpy()])
    np.testing.assert_allclose(ours.numpy(), twins, rtol=1e-5, atol=1e-5)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)
