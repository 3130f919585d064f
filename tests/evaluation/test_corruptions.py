"""Corruptions against plain twins of one image at a time, and as functions of the image's number alone."""

from __future__ import annotations

import colorsys
import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from tests.reference import plain_corruptions as plain
from weightclass.errors import UserError
from weightclass.evaluation import corruptions
from weightclass.evaluation.corruptions import KINDS, SEVERITIES, corrupt

generator = torch.Generator()


def photos(n: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Made-up pictures with a natural one's falling spectrum, uint8 [n, channels, height, width]."""
    noise = torch.randn(n, channels + 1, height, width, generator=generator.manual_seed(1))
    noise = noise[:, :1] + 0.3 * noise[:, 1:]  # channels much alike
    away = torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()
    smooth = torch.fft.irfft2(torch.fft.rfft2(noise) / (away.sqrt() + 0.02), s=(height, width))
    smooth -= smooth.mean((1, 2, 3), keepdim=True)
    return (118 + 50 * smooth / smooth.std((1, 2, 3), keepdim=True)).clamp(0, 255).byte()


def one_by_one(images: Tensor) -> list[np.ndarray]:
    """float64 [H, W, C] in 0..1."""
    return [image.permute(1, 2, 0).numpy() / 255 for image in images]


class Drawn:
    """Hands out random numbers and remembers them."""

    def __init__(self, n: int) -> None:
        self.n, self.calls = n, list[Tensor]()
        generator.manual_seed(2)

    def __call__(self, *shape: int) -> Tensor:
        self.calls.append(torch.rand(self.n, *shape, generator=generator))
        return self.calls[-1]


def close(found: Tensor, expected: list[np.ndarray], atol: float = 2e-6) -> None:
    torch.testing.assert_close(
        found.permute(0, 2, 3, 1).double(), torch.from_numpy(np.stack(expected)), atol=atol, rtol=0
    )


# --- the whole -----------------------------------------------------------------------------------------------


def test_the_fifteen_kinds_in_the_order_of_the_paper() -> None:
    assert " ".join(KINDS) == (
        "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog "
        "brightness contrast elastic_transform pixelate jpeg_compression"
    )
    assert all(len(by_severity) == len(SEVERITIES) for _, by_severity in KINDS.values())
    assert KINDS["gaussian_noise"][1] == (0.04, 0.06, 0.08, 0.09, 0.1)
    assert KINDS["jpeg_compression"][1][-1] == 40 and KINDS["contrast"][1][-1] == 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_does_not_matter(kind: str) -> None:
    images = photos(5)
    whole = corrupt(images, kind, 5, first=7)
    assert whole.dtype == torch.uint8 and whole.shape == images.shape
    parts = torch.cat([corrupt(images[:2], kind, 5, 7), corrupt(images[2:], kind, 5, 9)])
    assert (whole.int() - parts.int()).abs().max() <= 1  # matrix products round by the batch's size
    assert (whole != parts).float().mean() < 1e-3


DRAWN = [
    kind
    for kind in KINDS
    if kind.split("_")[0] not in ("defocus", "zoom", "brightness", "contrast", "pixelate", "jpeg")
]


@pytest.mark.parametrize("kind", DRAWN)
def test_number_and_seed_are_what_is_drawn_by(kind: str) -> None:
    image = photos(1)
    several = [corrupt(image, kind, 3), corrupt(image, kind, 3, first=1), corrupt(image, kind, 3, seed=1)]
    assert not any(torch.equal(several[i], several[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 37)])
def test_grey_and_other_sizes(kind: str, shape: tuple[int, int, int]) -> None:
    images = photos(2, *shape)
    assert corrupt(images, kind, 1).shape == images.shape
    assert not torch.equal(corrupt(images, kind, 5), images)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("frost", "elastic_transform", "glass_blur")])
def test_severity_grows(kind: str) -> None:
    images = photos(12)
    change = [(corrupt(images, kind, severity).float() - images).abs().mean() for severity in SEVERITIES]
    assert all(later > 0.98 * earlier for earlier, later in pairwise(change))
    assert change[4] > 1.2 * change[0]


def test_severity_of_those_that_do_not_only_grow() -> None:
    """As published: frost takes from the picture what it lays on, elastic moves less but more roughly, and glass blurs
    more before it shuffles twice."""
    images = photos(12)
    glass = [(corrupt(images, "glass_blur", severity).float() - images).abs().mean() for severity in (1, 5)]
    assert glass[1] > 1.2 * glass[0]
    kept = [np.corrcoef(corrupt(images, "frost", s).flatten(), images.flatten())[0, 1] for s in SEVERITIES]
    assert kept[0] > kept[1] > max(kept[2:]) and kept[4] == min(kept)
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(12, 1, 32, 32)[:, :, :, 4:-4]
    rough = [corrupt(ramp, "elastic_transform", s).float().diff(n=2).abs().mean() for s in SEVERITIES]
    assert rough == sorted(rough) and rough[4] > 3 * rough[0]


def test_a_mistake_is_one_line() -> None:
    with pytest.raises(UserError, match=r"'forst' at severity 1 \(of 1 to 5\): did you mean frost\?"):
        corrupt(photos(1), "forst", 1)
    with pytest.raises(UserError, match="'fog' at severity 6"):
        corrupt(photos(1), "fog", 6)


# --- against plain twins -------------------------------------------------------------------------------------


@settings(max_examples=6)
@given(st.integers(3, 9), st.integers(3, 9), st.integers(1, 2))
def test_glass_goes_pixel_by_pixel(height: int, width: int, times: int) -> None:
    images, drawn = photos(2, 3, height, width), Drawn(2)
    found = corruptions.glass_blur(images / 255, (0.05, times), drawn)
    expected = one_by_one(images)
    for draws in drawn.calls:
        up, left = (draws < 0.5).int().numpy().swapaxes(0, 1)
        expected = [plain.glass_shuffle(*each) for each in zip(expected, up, left, strict=True)]
    close(found, expected)


def test_glass_blurs_before_and_after() -> None:
    images = photos(2)
    found = corruptions.glass_blur(images / 255, (0.4, 0), Drawn(2))
    expected = [ndimage.gaussian_filter(one, (0.4, 0.4, 0), mode="nearest") for one in one_by_one(images)]
    expected = [np.floor(one * 255 + 2**-10) / 255 for one in expected]
    close(found, [ndimage.gaussian_filter(one, (0.4, 0.4, 0), mode="nearest") for one in expected], atol=2e-3)


@settings(max_examples=20)
@given(st.floats(-180, 180), st.integers(1, 4), st.floats(0.5, 5))
def test_motion_goes_step_by_step(degrees: float, radius: int, sigma: float) -> None:
    images = photos(1, 3, 5, 6)
    found = corruptions.smeared(images / 255, radius, sigma, torch.tensor([degrees], dtype=torch.float64))
    close(found, [plain.motion(one, radius, sigma, degrees) for one in one_by_one(images)])


@pytest.mark.parametrize("size", [2, 8, 16])
def test_plasma_goes_cell_by_cell(size: int) -> None:
    drawn = Drawn(3)
    found = corruptions.plasma(drawn, size, size, 1.75)
    expected = [plain.plasma(2 * one.numpy() - 1, 1.75)[:, :, None] for one in drawn.calls[0]]
    close(found, expected)


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.13, 1.75, 2.25])
def test_zoom_is_scipys(factor: float) -> None:
    images = photos(2)
    close(corruptions.zoomed(images / 255, factor), [plain.zoom(one, factor) for one in one_by_one(images)])


def test_zoom_blur_is_the_mean_of_what_lies_on_the_way() -> None:
    images = photos(1)
    [one] = one_by_one(images)
    steps = np.arange(1, 1.06, 0.01)  # whose end NumPy includes, for 0.06 / 0.01 is more than 6
    assert len(steps) == 7
    expected = (one + sum(plain.zoom(one, step) for step in steps)) / 8
    close(corruptions.zoom_blur(images / 255, 1.06, Drawn(1)), [expected])


def test_shot_noise_counts_photons() -> None:
    levels, drawn = torch.arange(0, 256, 5).byte().view(1, 1, 4, 13), Drawn(1)
    found = corruptions.shot_noise(levels / 255, 50, drawn)
    rates = levels.flatten().double() * 50 / 255
    counts = [plain.poisson(u, rate) for u, rate in zip(drawn.calls[0].flatten().tolist(), rates.tolist(), strict=True)]
    assert (found * 50).round().flatten().tolist() == [min(count, 50) for count in counts]


def test_noise_is_as_strong_as_it_says() -> None:
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    found = (corrupt(grey, "gaussian_noise", 2).float() - 127.5).flatten() / (0.06 * 255)  # cut off: half a level less
    assert stats.kstest(found[:2000], "norm").pvalue > 1e-3
    spoiled = corrupt(grey, "impulse_noise", 5).flatten()
    shares = [(spoiled == value).float().mean().item() for value in (0, 255)]
    assert shares == pytest.approx([0.035, 0.035], abs=0.004)


def test_defocus_is_a_softened_disk() -> None:
    dot = torch.zeros(1, 1, 9, 9)
    dot[0, 0, 4, 4] = 1
    box = corruptions.defocus_blur(dot, (1.5, 0.1), Drawn(1))
    assert torch.allclose(box[0, 0, 3:6, 3:6], torch.full((3, 3), 1 / 9)) and box.sum() == pytest.approx(1)
    soft = corruptions.defocus_blur(dot, (0.3, 0.4), Drawn(1))[0, 0]
    assert (soft[4, 3] / soft[4, 4]).item() == pytest.approx(np.exp(-1 / (2 * 0.4**2)))
    plus = corruptions.defocus_blur(dot, (1, 0.1), Drawn(1))[0, 0]
    assert plus[4, 3].item() == pytest.approx(0.2) and plus[3, 3].item() == pytest.approx(0)


def test_brightness_is_hsvs_value() -> None:
    images = torch.tensor([[0, 0, 0], [200, 100, 0], [3, 3, 9], [255, 255, 255]], dtype=torch.uint8).T.view(1, 3, 2, 2)
    found = corruptions.brightness(images / 255, 0.2, Drawn(1))
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in one_by_one(images)[0].reshape(4, 3)]
    rgb = [colorsys.hsv_to_rgb(h, s, min(v + 0.2, 1)) for h, s, v in hsv]
    close(found, [np.array(rgb).reshape(2, 2, 3)])


def test_contrast_draws_each_channel_to_its_mean() -> None:
    images = photos(2)
    expected = [(one - one.mean((0, 1))) * 0.3 + one.mean((0, 1)) for one in one_by_one(images)]
    close(corruptions.contrast(images / 255, 0.3, Drawn(2)), expected)


@pytest.mark.parametrize("c", KINDS["elastic_transform"][1])
def test_elastic_warps_twice(c: tuple[float, float, float]) -> None:
    images, drawn = photos(2), Drawn(2)
    found = corruptions.elastic_transform(images / 255, c, drawn)
    expected = []
    for one, moved, field in zip(
        one_by_one(images), *(2 * draws.double().numpy() - 1 for draws in drawn.calls), strict=True
    ):
        points = np.array([(26, 26), (26, 6), (6, 6)]) + 32 * c[2] * moved
        smooth = ndimage.gaussian_filter(field, (0, 32 * c[1], 32 * c[1]), mode="reflect", truncate=3)
        expected.append(plain.warp(one, points, 32 * c[0] * smooth))
    close(found, expected, atol=1e-4)


def test_pixelate_and_jpeg_are_pillows() -> None:
    images = photos(2)
    for one, small, pressed in zip(
        images, corrupt(images, "pixelate", 5), corrupt(images, "jpeg_compression", 5), strict=True
    ):
        picture = Image.fromarray(one.permute(1, 2, 0).numpy())
        few = picture.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
        assert np.array_equal(small.permute(1, 2, 0).numpy(), np.asarray(few))
        picture.save(file := io.BytesIO(), "JPEG", quality=40)
        assert np.array_equal(pressed.permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))


def test_frost_and_snow_lie_on_the_picture() -> None:
    black = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    frost, snow = (corrupt(black, kind, 2).float() for kind in ("frost", "snow"))
    assert frost.max() <= 0.3 * 255 and (frost[:, 2] >= frost[:, 0]).all() and frost.std() > 3
    assert torch.equal(snow[:, 0], snow[:, 1]) and torch.equal(snow, snow.flip(2, 3))  # both ways round
