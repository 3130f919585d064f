"""Pictures: valid PNGs of sensible size in odd cases, nothing cut off, pixels true, written whole or not at all."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weightclass.evaluation import pictures
from weightclass.evaluation.metrics import Scorecard, scorecard


def read(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] of a PNG; its outermost pixels must be white, or something was cut off."""
    from PIL import Image

    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    border = np.ones(pixels.shape[:2], bool)
    border[2:-2, 2:-2] = False
    assert (pixels[border] == 255).all(), "something touches the border"
    assert (pixels < 255).any(), "an empty picture"
    return pixels


def record(epoch: int, **more: float | None) -> dict[str, float | None]:
    return {"epoch": epoch, "train_loss": 2 / epoch, "train_accuracy": 1 - 0.9 / epoch, **more}


RUNS = {
    "one epoch": [record(1, lr=0.1)],
    "no validation, no lr": [record(i) for i in range(1, 4)],
    "all close": [record(i, lr=1 / i, validation_accuracy=1 - 0.9 / i, test_accuracy=0.99) for i in range(1, 40)],
    "gaps": [record(i, validation_loss=1.0 if i % 2 else None, test_accuracy=math.nan) for i in range(1, 9)],
    "late epochs only": [record(i, validation_accuracy=0.5) for i in (199, 200)],
}


@pytest.mark.parametrize("run", RUNS)
def test_curves(tmp_path: Path, run: str) -> None:
    pictures.curves(RUNS[run], tmp_path / "curves.png", f"a run: {run}")
    high, wide, _ = read(tmp_path / "curves.png").shape
    with_lr = any("lr" in record for record in RUNS[run])
    assert (wide, high) == (1750 if with_lr else 1250, 532)


@given(st.lists(st.floats(0, 1), max_size=6))
def test_spread_keeps_order_and_distance(places: list[float]) -> None:
    moved = pictures.spread(places, 0.14)
    order = sorted(range(len(places)), key=lambda i: places[i])
    steps = [moved[b] - moved[a] for a, b in pairwise(order)]
    assert all(step >= 0.14 - 1e-9 for step in steps)
    assert all(0.05 - 1e-9 <= place <= 0.95 + 1e-9 for place in moved)


def test_spread_leaves_alone_what_stands_apart() -> None:
    assert pictures.spread([0.9, 0.1, 0.5], 0.14) == [0.9, 0.1, 0.5]


def card(classes: int, names: list[str] | None = None, right: bool = False) -> Scorecard:
    labels = torch.arange(6 * classes) % classes
    said = labels if right else torch.where(torch.arange(len(labels)) % 4 == 0, labels * 7 % classes, labels)
    logits = torch.nn.functional.one_hot(said, classes).float()
    return scorecard(logits, labels, names or [f"class {i}" for i in range(classes)])


@pytest.mark.parametrize("classes", [2, 100, 130])
def test_confusion(tmp_path: Path, classes: int) -> None:
    pictures.confusion(card(classes), tmp_path / "confusion.png", "a title that is a good deal longer than the picture")
    high, wide, _ = read(tmp_path / "confusion.png").shape
    assert 500 < high < 2700 and 500 < wide < 2700


@pytest.mark.parametrize("names", [["$5 or $10", "W" * 80, "<b>&"], ["猫", "собака", ""]], ids=["odd", "unicode"])
def test_confusion_of_odd_names(tmp_path: Path, names: list[str]) -> None:
    pictures.confusion(card(3, names), tmp_path / "confusion.png", "")
    read(tmp_path / "confusion.png")


def test_confusion_without_errors_or_images(tmp_path: Path) -> None:
    pictures.confusion(card(4, right=True), tmp_path / "right.png", "no errors")
    pictures.confusion(scorecard(torch.eye(3)[:1], torch.tensor([0]), list("abc")), tmp_path / "few.png", "one image")
    right = read(tmp_path / "right.png")
    assert not (right == np.array([92, 26, 0])).all(-1)[:, : right.shape[1] - 130].any(), "an error where there is none"
    read(tmp_path / "few.png")


def test_confusion_shows_the_error_darker_than_the_right_answers(tmp_path: Path) -> None:
    labels = torch.tensor([0] * 9 + [0])
    said = torch.tensor([0] * 9 + [1])
    errors = scorecard(torch.nn.functional.one_hot(said, 2).float(), labels, ["a", "b"])
    pictures.confusion(errors, tmp_path / "confusion.png", "one error in ten")
    pixels = read(tmp_path / "confusion.png")
    assert (pixels == np.array([92, 26, 0])).all(-1).sum() > 0.2 * 420 * 420  # a quarter of the map, less its count


def ramp(count: int, channels: int, tall: int, wide: int) -> Tensor:
    size = count * channels * tall * wide
    return (torch.arange(size) * 37 % 256).to(torch.uint8).reshape(count, channels, tall, wide)


@pytest.mark.parametrize(
    ("count", "channels", "tall", "wide"),
    [(1, 1, 8, 8), (70, 3, 32, 32), (5, 2, 28, 20), (3, 3, 2, 600), (9, 3, 64, 4), (1, 3, 1, 1)],
)
def test_samples(tmp_path: Path, count: int, channels: int, tall: int, wide: int) -> None:
    images = ramp(count, channels, tall, wide)
    pictures.samples(images, [f"label {i}" for i in range(count)], tmp_path / "samples.png", "what the network sees")
    high, across, _ = read(tmp_path / "samples.png").shape
    assert 80 < high < 2000 and 420 <= across < 2300


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["uint8", "unit", "normalised"])
def test_samples_are_true_to_the_pixel(tmp_path: Path, channels: int, kind: str) -> None:
    images = ramp(7, channels, 8, 8)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 255
    given = {"uint8": images, "unit": images / 255, "normalised": (images / 255 - 0.45) / 0.22}[kind]
    pictures.samples(given, list("abcdefg"), tmp_path / "samples.png", "x")
    pixels = read(tmp_path / "samples.png")
    first = pixels[52 : 52 + 128, 14 : 14 + 128]  # below the title's strip, right of the gap
    expected = images[0].expand(3, 8, 8).permute(1, 2, 0).numpy().repeat(16, 0).repeat(16, 1)
    np.testing.assert_array_equal(first, expected)


def test_mistakes_draws_the_most_confident_wrong_ones_first(tmp_path: Path) -> None:
    images = torch.arange(0, 250, 50).to(torch.uint8).reshape(5, 1, 1, 1).expand(5, 3, 16, 16)
    truth, predicted = list("abcab"), list("abbba")  # wrong: 2, 3, 4
    pictures.mistakes(images, truth, predicted, torch.tensor([0.99, 0.9, 0.3, 0.8, 0.6]), tmp_path / "m.png", "worst")
    pixels = read(tmp_path / "m.png")
    middles = [int(pixels[52 + 100, 14 + i * 270 + 100, 0]) for i in range(3)]
    assert middles == [150, 200, 100]


def test_no_mistakes_is_a_picture_too(tmp_path: Path) -> None:
    pictures.mistakes(ramp(3, 1, 8, 8), list("abc"), list("abc"), [0.5] * 3, tmp_path / "m.png", "a perfect network")
    assert read(tmp_path / "m.png").shape[0] < 150


def test_many_long_mistakes(tmp_path: Path) -> None:
    count = 41
    pictures.mistakes(
        ramp(count, 3, 32, 32),
        ["W" * 40] * count,
        ["automobile $x$"] * count,
        [1.0] * count,
        tmp_path / "m.png",
        "many",
    )
    high, wide, _ = read(tmp_path / "m.png").shape
    assert 800 < high < 1200 and 800 < wide < 1300


@given(st.integers(0, 64), st.floats(0.05, 20))
def test_columns_waste_little(count: int, tallness: float) -> None:
    columns = pictures._columns(count, tallness)
    assert 1 <= columns <= max(1, count)
    rows = math.ceil(count / columns)
    assert rows * columns - count < max(columns, 2)


def test_an_error_leaves_the_old_picture_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), pictures.page(path, "new", 400, 300):
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pictures.page(path, "new", 400, 300):
        pass
    assert read(path).shape == (352, 400, 3) and list(tmp_path.iterdir()) == [path]


def test_style_does_not_leak(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    pictures.curves(RUNS["one epoch"], tmp_path / "curves.png", "a run")
    assert dict(matplotlib.rcParams) == before


def test_same_picture_twice_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        pictures.samples(ramp(2, 3, 8, 8), ["a", "b"], tmp_path / name, "a grid")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
