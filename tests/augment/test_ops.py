"""Every operation equals its plain twin pixel for pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
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
    assert_same(ops.crop(images, down, right), twins)
    assert torch.equal(images, before)


@given(shape=SHAPES, seed=SEEDS, channels_last=st.booleans())
def test_crop_over_the_reflection(shape: tuple[int, ...], seed: int, channels_last: bool) -> None:
    n, _, h, w = shape
    images = pictures(seed, shape, channels_last)
    down, right = drawn(seed + 1, (n,), 1 - h, h - 1), drawn(seed + 2, (n,), 1 - w, w - 1)
    twins = [
        plain_augment.crop(image, int(d), int(r), "reflect")
        for image, d, r in zip(images.numpy(), down, right, strict=True)
    ]
    assert_same(ops.crop(images, down, right, "reflect"), twins)


@given(shape=SHAPES, seed=SEEDS, size=st.integers(1, 12), channels_last=st.booleans())
def test_cutout(shape: tuple[int, ...], seed: int, size: int, channels_last: bool) -> None:
    images = pictures(seed, shape, channels_last)
    before = images.clone()
    top, left = drawn(seed + 1, (2, shape[0]), -size, 10)
    fill = drawn(seed + 2, shape[1:2], 0, 255)
    twins = [
        plain_augment.cutout(image, int(t), int(x), size, fill.tolist())
        for image, t, x in zip(images.numpy(), top, left, strict=True)
    ]
    assert_same(ops.cutout(images, top, left, size, fill.to(torch.uint8)), twins)
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_normalise(channels: int) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, channels, 1, 1)
    mean, std = [0.5, 0.45, 0.0, 1.0][:channels], [0.25, 0.2, 1.0, 0.01][:channels]
    ours = ops.normalise(images, torch.tensor(mean), torch.tensor(std))
    twins = np.stack([plain_augment.normalise(image, mean, std) for image in images.numpy()])
    np.testing.assert_allclose(ours.numpy(), twins, rtol=1e-5, atol=1e-5)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)
