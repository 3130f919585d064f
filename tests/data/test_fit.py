"""`fitted` is its plain twin and torch's resize in one go, near Pillow's, in one thread and little memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tests.reference.plain_images import fitted as plain
from weightclass.data.fit import Fit, fitted

ROOT = Path(__file__).parents[2]
SIDE, GOAL, FITS = st.integers(1, 70), st.integers(1, 24), st.sampled_from(get_args(Fit))
SIZES = {"size": st.tuples(SIDE, SIDE), "goal": st.tuples(GOAL, GOAL)}


def noise(channels: int, size: tuple[int, int]) -> torch.Tensor:
    """Laid out as Pillow does: the channels of a pixel are neighbours."""
    return torch.from_numpy(np.random.default_rng(sum(size)).integers(0, 256, (*size, channels), np.uint8)).permute(
        2, 0, 1
    )


def photograph(height: int, width: int) -> torch.Tensor:
    """Patches with sharp edges, slopes within them, and noise."""
    rng = np.random.default_rng(0)
    patches = F.interpolate(torch.from_numpy(rng.normal(120, 60, (1, 3, 9, 12))), (height, width))[0].numpy()
    image = patches + np.linspace(-40, 40, width) + rng.normal(0, 3, (3, height, width))
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))


@given(**SIZES, fit=FITS, channels=st.sampled_from([1, 3]))
@example(size=(60, 1), goal=(8, 8), fit="pad", channels=3)
@example(size=(1, 60), goal=(16, 1), fit="crop", channels=3)
@example(size=(3, 2), goal=(5, 5), fit="pad", channels=1)  # 3.33 wide, between gaps of 1
@example(size=(4, 6), goal=(2, 1), fit="crop", channels=1)
def test_every_pixel_is_the_twins(size: tuple[int, int], goal: tuple[int, int], fit: Fit, channels: int):
    image = noise(channels, size)
    found, exact = fitted(image, goal, fit), plain(image.numpy(), goal, fit)
    assert found.dtype == torch.uint8 and found.shape == exact.shape == (channels, *goal)
    assert np.abs(found.numpy() - exact).max() < 0.502  # rounded to the nearest; at a tie, either


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("fit", get_args(Fit))
def test_a_photograph_is_the_twins_and_torchs(side: int, fit: Fit):
    image = photograph(480, 640)
    found, exact = fitted(image, (side, side), fit).numpy(), np.rint(plain(image.numpy(), (side, side), fit))
    assert np.abs(found - exact).max() <= 1 and (found == exact).mean() > 0.999
    if fit == "squash":
        whole = F.interpolate(image[None].float(), (side, side), mode="bilinear", antialias=True)[0]
        assert (found == whole.round().numpy()).mean() > 0.999


@given(**SIZES)
def test_pillow_says_nearly_the_same(size: tuple[int, int], goal: tuple[int, int]):
    image = noise(3, size)
    theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(goal[::-1], Image.Resampling.BILINEAR)
    mine = fitted(image, goal, "squash").permute(1, 2, 0)
    np.testing.assert_allclose(mine.int(), np.asarray(theirs).astype(int), atol=1)  # it rounds after each side


@pytest.mark.parametrize("fit", get_args(Fit))
def test_what_needs_no_resizing_keeps_its_pixels(fit: Fit):
    image = noise(3, (12, 8))
    assert fitted(image, (12, 8), fit) is image
    wide = noise(1, (8, 13))
    assert fit != "crop" or torch.equal(fitted(wide, (8, 8), fit), wide[:, :, 2:10])
    assert fit != "pad" or torch.equal(fitted(wide, (14, 13), fit), F.pad(wide, (0, 0, 3, 3)))


def test_a_thread_of_a_picture_makes_no_floats(tmp_path: Path):
    image = torch.from_numpy(np.zeros((1, 2_000_000, 1), np.uint8))
    tracemalloc.start()
    fitted(image, (8, 64), "squash")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6  # the width first would take 512e6


ALONE = """
import os, numpy as np, torch
import torch.nn.functional as F
from weightclass.data.fit import fitted
torch.set_num_threads(8)
threads, image = [], torch.from_numpy(np.zeros((480, 640, 3), np.uint8))
for side in (None, 32, 104, 105, 224, 600):
    for fit in ("crop", "pad", "squash"):
        side and fitted(image.permute(2, 0, 1), (side, side), fit)
        threads.append(len(os.listdir("/proc/self/task")))
F.interpolate(image.permute(2, 0, 1)[None].float(), (224, 224), mode="bilinear", antialias=True)
assert len(os.listdir("/proc/self/task")) > threads[0] and len(set(threads)) == 1, threads
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_other_thread_wakes():
    subprocess.run([sys.executable, "-c", ALONE], cwd=ROOT, check=True)
