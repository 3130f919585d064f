"""Grids of images: pixels true, the right images in the right order, only the drawn ones read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.reference.pictures import Lazy, ramp, read
from weightclass.evaluation import grids
from weightclass.evaluation.metrics import scorecard


@pytest.mark.parametrize(
    ("count", "channels", "tall", "wide"), [(1, 1, 8, 8), (16, 3, 32, 32), (5, 2, 28, 20), (3, 3, 2, 600), (1, 3, 1, 1)]
)
def test_samples(tmp_path: Path, count: int, channels: int, tall: int, wide: int) -> None:
    images, classes = ramp(count, channels, tall, wide), [f"label {i}" for i in range(count)]
    grids.samples([(images, torch.arange(count))] * 2, classes, tmp_path / "samples.png", "what the network sees")
    high, across, _ = read(tmp_path / "samples.png").shape
    assert 80 < high < 2500 and 420 <= across < 2300


def test_mistakes_draws_the_most_confident_wrong_ones_first(tmp_path: Path) -> None:
    images = torch.arange(0, 250, 50).to(torch.uint8).reshape(5, 1, 1, 1).expand(5, 3, 16, 16)
    truth, predicted = list("abcab"), list("abbba")  # wrong: 2, 3, 4
    grids.mistakes(images, truth, predicted, torch.tensor([0.99, 0.9, 0.3, 0.8, 0.6]), tmp_path / "m.png", "worst")
    pixels = read(tmp_path / "m.png")
    middles = [int(pixels[52 + 100, 14 + i * 270 + 100, 0]) for i in range(3)]
    assert middles == [150, 200, 100]


def test_without_mistakes_the_least_certain_right_answers(tmp_path: Path) -> None:
    images = Lazy(torch.arange(0, 250, 10).to(torch.uint8).reshape(25, 1, 1, 1).expand(25, 3, 32, 32))
    confidence = torch.linspace(0.99, 0.5, 25)
    grids.mistakes(images, ["a"] * 25, ["a"] * 25, confidence, tmp_path / "m.png", "perfect")
    pixels = read(tmp_path / "m.png")
    assert images.reads == [12] and pixels.shape[0] < 700
    assert [int(pixels[-100, 14 + i * 142 + 100, 0]) for i in range(4)] == [160, 150, 140, 130]  # the last row


def test_many_long_mistakes(tmp_path: Path) -> None:
    count = 41
    grids.mistakes(
        ramp(count, 3, 32, 32),
        ["W" * 40] * count,
        ["automobile $x$"] * count,
        [1.0] * count,
        tmp_path / "m.png",
        "many",
    )
    high, wide, _ = read(tmp_path / "m.png").shape
    assert 800 < high < 1200 and 800 < wide < 1300


@pytest.mark.parametrize("side", [32, 96])
def test_only_the_drawn_images_are_read(tmp_path: Path, side: int) -> None:
    images = Lazy(ramp(70, 3, side, side))
    grids.mistakes(images, ["a"] * 70, ["b"] * 50 + ["a"] * 20, [0.5] * 70, tmp_path / "m.png", "wrong")
    assert images.reads == [40]
    assert 600 < max(read(tmp_path / "m.png").shape) < 2400


# --- what the network sees ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "texts"),
    [
        ([0, 1, 0, 0], ["ship"]),
        ([0.3, 0.7, 0, 0], ["ship 70%", "cat 30%"]),
        ([0.5, 0, 0.5, 0], ["cat 50%", "dog 50%"]),
        ([0.004, 0.996, 0, 0], ["ship"]),
        ([0.1, 0.2, 0.3, 0.4], ["owl 40%", "dog 30%", "ship 20%"]),
    ],
)
def test_a_mixed_label_in_words(shares: list[float], texts: list[str]) -> None:
    [lines] = grids._captions(torch.tensor([shares]).float(), ["cat", "ship", "dog", "owl"])
    assert [name + tail for name, tail, _ in lines] == texts


@pytest.mark.parametrize(("channels", "side", "tile"), [(1, 8, 128), (3, 32, 128), (3, 64, 128), (3, 300, 256)])
def test_samples_are_true_to_the_pixel_and_in_their_places(tmp_path: Path, channels: int, side: int, tile: int) -> None:
    """A row an image, a column a draw; the first column stands apart."""
    colours = torch.arange(0, 240, 40).to(torch.uint8)
    images = colours.view(3, 2, 1, 1, 1).expand(3, 2, channels, side, side)  # [draw, image]
    labels = torch.tensor([0, 1])
    grids.samples([(each, labels) for each in images], ["a", "b"], tmp_path / "d.png", "x")
    pixels = read(tmp_path / "d.png")
    left = int((pixels[52 + 22 + tile // 2] == 0).all(1).argmax())  # the first image is black
    assert 28 < left < 60
    for draw in range(3):
        for row in range(2):
            x, y = left + draw * (tile + 14) + 14 * (draw > 0), 52 + 22 + row * (tile + 14)
            square = pixels[y : y + tile, x : x + tile]
            assert (square == int(colours[2 * draw + row])).all()


def test_samples_make_room_for_mixed_labels(tmp_path: Path) -> None:
    images, labels = ramp(2, 3, 32, 32), torch.tensor([0, 1])
    heights = []
    for shares in ([[1, 0, 0], [0, 1, 0]], [[0.4, 0.6, 0], [0, 1, 0]], [[0.2, 0.3, 0.5], [0, 1, 0]]):
        columns = [(images, labels), (images, torch.tensor(shares).float())]
        grids.samples(columns, ["cat", "$ship", "W" * 300], tmp_path / "d.png", "mixed")
        heights.append(read(tmp_path / "d.png").shape[0])
    assert [height - heights[0] for height in heights] == [0, 2 * 2 * 18, 2 * 3 * 18]


# --- the most confused pairs -------------------------------------------------------------------------------


def test_confused_shows_each_pair_most_confident_first(tmp_path: Path) -> None:
    """Of 5 images of class a, three are taken for b, with rising confidence; of 3 of class b, one for c."""
    labels, said = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1]), torch.tensor([1, 0, 1, 0, 1, 1, 2, 1])
    logits = torch.nn.functional.one_hot(said, 3) * torch.arange(1.0, 9).unsqueeze(1)
    images = Lazy(torch.arange(0, 240, 30).to(torch.uint8).reshape(8, 1, 1, 1).expand(8, 3, 32, 32))
    card = scorecard(logits, labels, ["a", "b", "c"])
    grids.confused(card, images, labels, logits, tmp_path / "c.png", "taken")
    pixels = read(tmp_path / "c.png")
    first, second = 52 + 28 + 64, 52 + 28 + 64 + 202  # the middles of the two rows of tiles
    assert [int(pixels[first, 14 + i * 142 + 64, 0]) for i in range(3)] == [120, 60, 0]
    assert [int(pixels[second, 14 + i * 142 + 64, 0]) for i in range(3)] == [180, 255, 255]
    assert images.reads == [3, 1]


@pytest.mark.parametrize(("side", "columns"), [(8, 10), (64, 10), (96, 10), (224, 6), (300, 5)])
def test_confused_has_room_for_large_images(tmp_path: Path, side: int, columns: int) -> None:
    labels = torch.arange(160) % 2
    logits = torch.eye(2)[1 - labels]  # everything wrong
    images = Lazy(ramp(160, 1, side, side))
    card = scorecard(logits, labels, ["$5", "W" * 300])
    grids.confused(card, images, labels, logits, tmp_path / "c.png", "taken")
    tile = {8: 128, 64: 128, 96: 96, 224: 224, 300: 256}[side]
    assert read(tmp_path / "c.png").shape[1] == 14 + columns * (tile + 14)
    assert images.reads == [10, 10]


def test_nothing_is_confused_nothing_is_written(tmp_path: Path) -> None:
    labels = torch.arange(3)
    grids.confused(
        scorecard(torch.eye(3), labels, list("abc")), ramp(3, 3, 8, 8), labels, torch.eye(3), tmp_path / "c.png", ""
    )
    assert not list(tmp_path.iterdir())
