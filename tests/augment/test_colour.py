"""Every colour operation equals Pillow's on every pixel, or its plain twin where Pillow has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.reference import plain_colour
from weightclass.augment import colour

AUTO = [float(factor) for sign in (-1, 1) for factor in (1 + sign * torch.linspace(0, 0.9, 10))]
FACTORS = st.sampled_from(AUTO) | st.floats(0, 3, width=32)
STRENGTHS = {"posterize": st.integers(0, 8), "solarize": st.floats(-1, 257, width=32)}
STRENGTHS |= dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), FACTORS)
LUMA = {"contrast", "saturation", "grey"}  # the rest treat each channel alone, however many there are
PLAIN = ("invert", "autocontrast", "equalize", "grey", "smooth")
OF_THE_IMAGE = {"contrast", "autocontrast", "equalize", "invert"}
EVERY = (*STRENGTHS, *PLAIN)


def picture(rng: np.random.Generator, kind: str, shape: tuple[int, int, int]) -> np.ndarray:
    c, h, w = shape
    if kind == "gradient":
        slope = rng.uniform(-9, 9, (2, c, 1, 1))
        return (rng.uniform(0, 255) + slope[0] * np.arange(h)[:, None] + slope[1] * np.arange(w)).astype(np.int64) % 256
    levels = {"flat": 1, "two": 2, "few": 5, "many": 256}[kind]
    return rng.choice(256, (c, levels))[np.arange(c)[:, None, None], rng.integers(0, levels, shape)]


@st.composite
def batches(draw: st.DrawFn, channels: tuple[int, ...] = (1, 2, 3, 4)) -> Tensor:
    side = st.integers(1, 4) | st.integers(1, 40)
    shape = (draw(st.sampled_from(channels)), draw(side), draw(side))
    kinds = draw(st.lists(st.sampled_from(("flat", "two", "few", "many", "gradient")), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images = torch.from_numpy(np.stack([picture(rng, kind, shape) for kind in kinds]).astype(np.uint8))
    return images.to(memory_format=torch.channels_last) if draw(st.booleans()) else images


def strengths(name: str, values: list[float]) -> list[Tensor]:
    """What the operation takes after the images, if anything."""
    return [torch.tensor(values, dtype=torch.int64 if name == "posterize" else torch.float32)] if values else []


def twins(name: str, images: Tensor, values: list[float]) -> np.ndarray:
    twin = getattr(plain_colour, name)
    rows = [[value] for value in values] or [[]] * len(images)
    return np.stack([twin(image, *row) for image, row in zip(images.numpy(), rows, strict=True)])


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=50)
@given(data=st.data())
def test_equals_pillow(name: str, data: st.DataObject) -> None:
    images = data.draw(batches((1, 3) if name in LUMA else (1, 2, 3, 4)))
    many = len(images)
    values = data.draw(st.lists(STRENGTHS[name], min_size=many, max_size=many)) if name in STRENGTHS else []
    before, given, wanted = images.clone(), strengths(name, values), twins(name, images, values)
    changed = getattr(colour, name)(images, *given)
    assert changed.dtype == torch.uint8
    np.testing.assert_array_equal(changed.numpy(), wanted)
    if make := getattr(colour, f"{name}_tables", None):
        tables = make(images, *given) if name in OF_THE_IMAGE else make(*given)
        np.testing.assert_array_equal(colour.look_up(images, tables).numpy(), wanted)
    assert torch.equal(images, before)


def test_blend_of_every_pair_of_levels() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    degenerate, images = levels.view(256, 1).expand(256, 256), levels.expand(256, 256)
    several = [*AUTO, 2**-24, 1 - 2**-24, 1 + 2**-23, 1 / 3, 2.9999, -0.5, 40.0]
    first, second = Image.fromarray(degenerate.numpy()), Image.fromarray(images.numpy())
    ours = colour.blend(degenerate[None, None], images.expand(len(several), 1, 256, 256), torch.tensor(several))
    wanted = [np.asarray(Image.blend(first, second, factor)) for factor in several]
    np.testing.assert_array_equal(ours[:, 0].numpy(), np.stack(wanted))


def test_autocontrast_between_any_two_levels() -> None:
    """Where Pillow's float64 rounds a whole number down to the one below, so do we."""
    low, high = torch.triu_indices(256, 256, 1)[:, ::7].to(torch.uint8)
    levels = np.arange(256, dtype=np.uint8)
    images = torch.from_numpy(levels).expand(len(low), 256).maximum(low[:, None]).minimum(high[:, None])
    ours = colour.autocontrast(images[:, None, None])[:, 0, 0].numpy()
    for table, first, last in zip(ours, low.tolist(), high.tolist(), strict=True):
        between = slice(first, last + 1)
        np.testing.assert_array_equal(table[between], plain_colour.autocontrast(levels[None, None, between])[0, 0])


@settings(max_examples=50)
@given(
    images=batches(),
    values=st.lists(st.just(0.0) | st.floats(0, 4, width=32), min_size=4, max_size=4),
    k=st.integers(0, 5),
)
def test_blur_is_the_rounded_gaussian(images: Tensor, values: list[float], k: int) -> None:
    sigma = torch.tensor(values[: len(images)])
    exact = [plain_colour.blur(image, value, k) for image, value in zip(images.numpy(), sigma.tolist(), strict=True)]
    assert np.abs(colour.blur(images, sigma, k).numpy() - np.stack(exact)).max() < 0.501


@settings(max_examples=50)
@given(
    images=batches(), seed=st.integers(0, 2**32), values=st.lists(st.floats(0, 300, width=32), min_size=4, max_size=4)
)
def test_noise(images: Tensor, seed: int, values: list[float]) -> None:
    normal = torch.from_numpy(np.random.default_rng(seed).standard_normal(images.shape, np.float32))
    sigma = torch.tensor(values[: len(images)])
    rows = zip(images.numpy(), normal.numpy(), sigma.tolist(), strict=True)
    np.testing.assert_array_equal(
        colour.noise(images, normal, sigma).numpy(), np.stack([plain_colour.noise(*row) for row in rows])
    )


def arguments(name: str, count: int) -> list[Tensor | int]:
    """Made-up arguments for any public operation, of `count` images."""
    base = name.removesuffix("_tables")
    images = torch.arange(7 * 3 * 5 * 4).view(7, 3, 5, 4).mul(37).to(torch.uint8)[:count]
    strength = torch.linspace(0, 8, 7)[:count]
    first = [images] if base == name or base in OF_THE_IMAGE else []
    rest = {"blur": [strength, 2], "noise": [images.float(), strength], "posterize": [strength.long()]}
    return [*first, *rest.get(base, [strength] if base in STRENGTHS else [])]


TABLES = [f"{name}_tables" for name in EVERY if hasattr(colour, f"{name}_tables")]


@pytest.mark.parametrize("name", [*EVERY, *TABLES, "blur", "noise"])
def test_works_compiled_and_on_no_images(name: str) -> None:
    operation, given = getattr(colour, name), arguments(name, 7)
    eager = operation(*given)
    assert torch.equal(torch.compile(operation, backend="eager", fullgraph=True)(*given), eager)
    assert operation(*arguments(name, 0)).shape == eager[:0].shape
