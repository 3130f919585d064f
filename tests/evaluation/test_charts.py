"""Charts: valid PNGs of sensible size in odd cases, nothing cut off, the right thing drawn darker or larger."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.pictures import read
from weightclass.evaluation import charts
from weightclass.evaluation.metrics import Scorecard, scorecard


def record(epoch: int, **more: float | None) -> dict[str, float | None]:
    return {"epoch": epoch, "train_loss": 2 / epoch, "train_accuracy": 1 - 0.9 / epoch, "lr": 1 / epoch, **more}


RUNS = {
    "one epoch": [record(1)],
    "no validation": [record(i) for i in range(1, 4)],
    "all close": [record(i, validation_accuracy=1 - 0.9 / i, test_accuracy=0.99) for i in range(1, 40)],
    "gaps": [record(i, validation_loss=1.0 if i % 2 else None, test_accuracy=math.nan) for i in range(1, 9)],
    "late epochs only": [record(i, validation_accuracy=0.5) for i in (199, 200)],
}


@pytest.mark.parametrize("run", RUNS)
def test_curves(tmp_path: Path, run: str) -> None:
    charts.curves(RUNS[run], tmp_path / "curves.png", f"a run: {run}")
    high, wide, _ = read(tmp_path / "curves.png").shape
    assert (wide, high) == (1750, 532)


@given(st.lists(st.floats(0, 1), max_size=6))
def test_spread_keeps_order_and_distance(places: list[float]) -> None:
    moved = charts.spread(places, 0.14)
    order = sorted(range(len(places)), key=lambda i: places[i])
    steps = [moved[b] - moved[a] for a, b in pairwise(order)]
    assert all(step >= 0.14 - 1e-9 for step in steps)
    assert all(0.05 - 1e-9 <= place <= 0.95 + 1e-9 for place in moved)


def test_spread_leaves_alone_what_stands_apart() -> None:
    assert charts.spread([0.9, 0.1, 0.5], 0.14) == [0.9, 0.1, 0.5]


def card(classes: int, names: list[str] | None = None, right: bool = False) -> Scorecard:
    labels = torch.arange(6 * classes) % classes
    said = labels if right else torch.where(torch.arange(len(labels)) % 4 == 0, labels * 7 % classes, labels)
    logits = torch.nn.functional.one_hot(said, classes).float()
    return scorecard(logits, labels, names or [f"class {i}" for i in range(classes)])


@pytest.mark.parametrize("classes", [2, 100, 130])
def test_confusion(tmp_path: Path, classes: int) -> None:
    charts.confusion(card(classes), tmp_path / "confusion.png", "a title that is a good deal longer than the picture")
    high, wide, _ = read(tmp_path / "confusion.png").shape
    assert 500 < high < 2700 and 500 < wide < 2700


@pytest.mark.parametrize("names", [["$5 or $10", "W" * 80, "<b>&"], ["猫", "собака", ""]], ids=["odd", "unicode"])
def test_confusion_of_odd_names(tmp_path: Path, names: list[str]) -> None:
    charts.confusion(card(3, names), tmp_path / "confusion.png", "")
    read(tmp_path / "confusion.png")


def test_confusion_without_errors_or_images(tmp_path: Path) -> None:
    charts.confusion(card(4, right=True), tmp_path / "right.png", "no errors")
    charts.confusion(scorecard(torch.eye(3)[:1], torch.tensor([0]), list("abc")), tmp_path / "few.png", "one image")
    right = read(tmp_path / "right.png")
    assert not (right == np.array([92, 26, 0])).all(-1)[:, : right.shape[1] - 130].any(), "an error where there is none"
    read(tmp_path / "few.png")


def test_confusion_shows_the_error_darker_than_the_right_answers(tmp_path: Path) -> None:
    labels = torch.tensor([0] * 9 + [0])
    said = torch.tensor([0] * 9 + [1])
    errors = scorecard(torch.nn.functional.one_hot(said, 2).float(), labels, ["a", "b"])
    charts.confusion(errors, tmp_path / "confusion.png", "one error in ten")
    pixels = read(tmp_path / "confusion.png")
    assert (pixels == np.array([92, 26, 0])).all(-1).sum() > 0.2 * 420 * 420  # a quarter of the map, less its count


# --- reliability -------------------------------------------------------------------------------------------

TINTS = {"blue": (64, 149, 197), "over": (230, 158, 102), "under": (102, 197, 171)}


def sure(confidence: float, right: int, wrong: int) -> Scorecard:
    """Two classes; every image is given the first, `right` of them rightly."""
    logits = torch.tensor([[math.log(confidence / (1 - confidence)), 0.0]]).repeat(right + wrong, 1)
    return scorecard(logits, torch.tensor([0] * right + [1] * wrong), ["a", "b"])


@pytest.mark.parametrize(("right", "wrong", "gap"), [(60, 40, "over"), (100, 0, "under")])
def test_reliability_draws_the_gap(tmp_path: Path, right: int, wrong: int, gap: str) -> None:
    """Confidence 0.9: a bar of the lower of the two, and on it a gap as high as the ECE."""
    charts.reliability(card := sure(0.9, right, wrong), tmp_path / "r.png", "how sure")
    column = read(tmp_path / "r.png")[:, 84 + 640 * 13 // 15 + 10].astype(int)  # in the 14th bin, left of the whisker
    heights = {name: (abs(column - tint) <= 2).all(1).sum() for name, tint in TINTS.items()}
    assert card.ece == pytest.approx(abs(0.9 - right / 100))
    assert heights["blue"] == pytest.approx(640 * min(0.9, right / 100), abs=12)
    assert heights.pop(gap) == pytest.approx(640 * card.ece, abs=12)
    assert min(heights.values()) == 0, "a gap of the other kind"


def test_reliability_of_one_image_and_of_many_classes(tmp_path: Path) -> None:
    charts.reliability(sure(0.6, 0, 1), tmp_path / "one.png", "a title that is a good deal longer than the picture is")
    charts.reliability(card(130), tmp_path / "many.png", "many")
    assert read(tmp_path / "one.png").shape[1] == read(tmp_path / "many.png").shape[1] == 754
