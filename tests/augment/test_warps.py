"""Every warp equals Pillow's as torchvision calls it: nearest neighbour on every pixel, bilinear to a level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.reference import plain_policies, plain_warps
from tests.reference.pictures import natural
from weightclass import seeding
from weightclass.augment import warps

SHEARS = [*torch.linspace(0, 0.3, 10).tolist(), *torch.linspace(0, 0.99, 31).tolist()]  # AutoAugment, TrivialAugment
TURNS = [*torch.linspace(0, 30, 10).tolist(), *torch.linspace(0, 135, 31).tolist(), 45.0, 90.0, 180.0, 270.0]
SIZES = ((8, 8), (28, 28), (32, 32), (64, 64), (96, 96), (224, 224), (24, 41))
STRENGTHS = {"shear_x": SHEARS, "shear_y": SHEARS, "rotation": TURNS}


def uniform(purpose: str, count: int, draws: int = 1) -> Tensor:
    """float32 [draws, count]."""
    return seeding.uniform(seeding.key(0, purpose), torch.arange(count), draws)


def matrices(name: str, strength: Tensor, height: int, width: int) -> Tensor:
    operation: Callable[..., Tensor] = getattr(warps, name)
    return operation(strength, height, width) if name == "rotation" else operation(strength)


@st.composite
def batches(draw: st.DrawFn) -> Tensor:
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)))
    noise = np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 256, shape, np.uint8)
    images = torch.from_numpy(noise)
    return images.to(memory_format=torch.channels_last) if draw(st.booleans()) else images


def drawn_strengths(data: st.DataObject, name: str, count: int) -> list[float]:
    """Published ones and others; in 875ths, of which none is a tie in 16.16 fixed point."""
    others = st.integers(-2000, 2000).map(lambda i: i / 875 * (100 if name == "rotation" else 1))
    return data.draw(st.lists(st.sampled_from(STRENGTHS[name]) | others, min_size=count, max_size=count))


def assert_equal(ours: Tensor, images: Tensor, twin: Callable[..., np.ndarray], *strengths: Any) -> None:
    assert ours.dtype == torch.uint8
    twins = [twin(image, *own) for image, *own in zip(images.numpy(), *strengths, strict=True)]
    np.testing.assert_array_equal(ours.numpy(), np.stack(twins))


def assert_close(ours: Tensor, twins: list[np.ndarray], coefficients: Tensor) -> None:
    """Within a level, but for the pixels that come from the very edge of the image."""
    h, w = ours.shape[2:]
    edge = np.stack([plain_warps.on_the_edge(row, h, w) for row in coefficients.tolist()])
    gaps = np.abs(ours.numpy().astype(int) - np.stack(twins)) * ~edge[:, None]
    assert gaps.max() <= 1


# --- nearest neighbour ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", STRENGTHS)
def test_published_strengths_equal_pillow(name: str, size: tuple[int, int]) -> None:
    strengths = [sign * value for value in STRENGTHS[name] for sign in (1, -1)]
    images = natural(1, *size)[:, :1].expand(len(strengths), -1, -1, -1)
    ours = warps.warp(images, matrices(name, torch.tensor(strengths), *size))
    assert_equal(ours, images, getattr(plain_warps, name), torch.tensor(strengths).tolist())


@pytest.mark.parametrize("name", STRENGTHS)
@given(data=st.data(), images=batches())
def test_equals_pillow(name: str, data: st.DataObject, images: Tensor) -> None:
    strengths = drawn_strengths(data, name, len(images))
    before = images.clone()
    ours = warps.warp(images, matrices(name, torch.tensor(strengths, dtype=torch.float64), *images.shape[2:]))
    assert_equal(ours, images, getattr(plain_warps, name), strengths)
    assert torch.equal(images, before)


@given(data=st.data(), images=batches())
def test_translation_cuts_to_whole_pixels(data: st.DataObject, images: Tensor) -> None:
    each = st.lists(st.floats(-50, 50), min_size=len(images), max_size=len(images))
    right, down = data.draw(each), data.draw(each)
    ours = warps.warp(images, warps.translation(torch.tensor(right), torch.tensor(down)))
    assert_equal(ours, images, plain_warps.translation, torch.tensor(right).tolist(), torch.tensor(down).tolist())


@pytest.mark.parametrize("size", [(32, 32), (24, 41)], ids=str)
def test_a_thousand_rotations_equal_pillow(size: tuple[int, int]) -> None:
    degrees = 720 * uniform("degrees", 1000)[0].double() - 360
    images = natural(1, *size).expand(len(degrees), -1, -1, -1)
    ours = warps.affine(images, warps.fixed(warps.rotation(degrees, *size)))
    assert_equal(ours, images, plain_warps.rotation, degrees.tolist())


def test_any_matrix_equals_pillow() -> None:
    matrices = (4 * uniform("matrices", 300, 6).double() - 2).T * torch.tensor([1, 1, 20, 1, 1, 20])
    images = natural(300, 24, 41)
    assert_equal(warps.warp(images, matrices), images, plain_warps.warp, matrices.tolist())


# --- bilinear ------------------------------------------------------------------------------------------------


def corners(scale: float, count: int, height: int, width: int) -> Tensor:
    """int64 [count, 4, 2]: each moved inwards by up to half of `scale` of the side, as RandomPerspective does."""
    inwards = uniform("corners", count, 8).T.view(count, 4, 2) * (scale * torch.tensor([width // 2, height // 2]) + 1)
    far = torch.tensor([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    return (far - torch.where(far > 0, 1, -1) * inwards.long()).clamp(torch.tensor(0), far.amax(0))


@pytest.mark.parametrize("scale", [0, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (24, 41), (96, 64)], ids=str)
def test_homographies_solve_the_equations(scale: float, size: tuple[int, int]) -> None:
    ends = corners(scale, 50, *size)
    twins = [plain_policies.perspective_coefficients(size[1], size[0], quad) for quad in ends.tolist()]
    np.testing.assert_allclose(warps.homography(ends, *size).numpy(), twins, rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("scale", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (24, 41)], ids=str)
def test_perspectives_are_within_a_level(scale: float, size: tuple[int, int]) -> None:
    images, ends = natural(200, *size), corners(scale, 200, *size)
    ours = warps.perspective(images, ends)
    twins = [plain_warps.perspective(image, quad) for image, quad in zip(images.numpy(), ends.tolist(), strict=True)]
    assert_close(ours, twins, warps.homography(ends, *size))
    gaps = np.abs(ours.numpy().astype(int) - np.stack(twins))
    if scale < 0.9:  # beyond, the pictures are slivers with more edge than area
        assert (gaps > 0).mean() < 0.002
        assert (gaps > 1).mean() < 0.001


@pytest.mark.parametrize("name", STRENGTHS)
@given(data=st.data(), images=batches())
def test_bilinear_warps_are_within_a_level(name: str, data: st.DataObject, images: Tensor) -> None:
    strengths = drawn_strengths(data, name, len(images))
    maps = matrices(name, torch.tensor(strengths, dtype=torch.float64), *images.shape[2:])
    twin = getattr(plain_warps, name)
    twins = [twin(image, own, "bilinear") for image, own in zip(images.numpy(), strengths, strict=True)]
    assert_close(warps.warp(images, maps, "bilinear"), twins, warps.projective(maps))


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (7, 28), (28, 7), (6, 6)], ids=str)
def test_quarter_turns_equal_pillow_even_on_the_edge(size: tuple[int, int]) -> None:
    images, degrees = natural(4, *size), torch.tensor([90.0, 180.0, 270.0, -90.0])
    ours = warps.warp(images, warps.rotation(degrees, *size), "bilinear")
    assert_equal(ours, images, plain_warps.rotation, degrees.tolist(), ["bilinear"] * 4)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (7, 40), (224, 100)], ids=str)
def test_flat_areas_and_unmoved_images_stay_as_they_are(size: tuple[int, int]) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, *size)
    inside = torch.full_like(images, 255)
    moved = corners(0.5, 256, *size)
    black = warps.perspective(inside, moved) == 0
    assert torch.equal(warps.perspective(images, moved), images.masked_fill(black, 0))
    images = natural(3, *size)
    assert torch.equal(warps.perspective(images, corners(0, 3, *size)), images)
    assert torch.equal(warps.warp(images, warps.shear_x(torch.zeros(3)), "bilinear"), images)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (9, 9)], ids=str)
def test_corners_that_span_nothing_give_some_picture(size: tuple[int, int]) -> None:
    ends = torch.tensor([[[4, 4]] * 4, [[0, 0], [4, 4], [8, 8], [2, 2]], [[0, 0], [8, 8], [8, 0], [0, 8]]])
    pictures = warps.perspective(natural(3, *size), ends)
    assert pictures.shape == (3, 3, *size)
    assert pictures.dtype == torch.uint8


# --- both ----------------------------------------------------------------------------------------------------


def test_an_empty_batch_stays_empty() -> None:
    images, still = natural(4, 5, 6)[:0], torch.zeros(0)
    for interpolation in ("nearest", "bilinear"):
        assert warps.warp(images, warps.rotation(still, 5, 6), interpolation).shape == images.shape
    assert warps.perspective(images, torch.zeros(0, 4, 2, dtype=torch.int64)).shape == images.shape


def test_compiled_is_the_same() -> None:
    def everything(images: Tensor, strength: Tensor, ends: Tensor) -> list[Tensor]:
        maps = [warps.rotation(99 * strength, 24, 41), warps.shear_x(strength), warps.shear_y(strength)]
        maps.append(warps.translation(9 * strength, 5 * strength))
        warped = [warps.warp(images, map_, how) for map_ in maps for how in ("nearest", "bilinear")]
        return [*warped, warps.perspective(images, ends)]

    arguments = natural(6, 24, 41), uniform("strength", 6)[0], corners(0.5, 6, 24, 41)
    compiled = torch.compile(everything, backend="eager", fullgraph=True)
    for ours, plain in zip(compiled(*arguments), everything(*arguments), strict=True):
        assert torch.equal(ours, plain)
