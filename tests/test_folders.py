"""Folders as people have them: each trains, is scored and predicts from one command."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import weightclass as wc
from weightclass.cli import main

TINY = (
    *("model.blocks=1,1,1", "model.channels=8,16,16", "train.batch_size=16", "machine.threads=1"),
    *("machine.precision=float32", "augment.ops=crop(2)", "train.ema=0.5"),
)


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pattern(label: int, height: int, width: int, rng: np.random.Generator, channels: int) -> np.ndarray:
    """Waves whose direction, length and colour tell the class, in noise; uint8 [height, width(, 3)]."""
    y, x = np.mgrid[0:height, 0:width] / min(height, width)
    angle, waves = np.pi * (label % 5) / 5, 2 + label // 5
    wave = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6))
    tint = np.array([np.cos(label), np.sin(label), np.cos(3 * label)]) * 40 if channels == 3 else np.zeros(1)
    picture = 128 + 70 * wave[:, :, None] + tint + rng.normal(0, 12, (height, width, 1))
    return np.squeeze(picture.clip(0, 255).astype(np.uint8))


def saved(folder: Path, name: str, picture: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / name)


@dataclass
class Made:
    """A folder, what it should come to, and how long to train on it."""

    root: Path
    shape: tuple[int, int, int]
    classes: int
    sound: int
    epochs: int
    least: float


def grey(root: Path) -> Made:
    """28 x 28 grey PNGs, three classes of 60, 30 and 12."""
    rng = np.random.default_rng(0)
    for label, count in enumerate((60, 30, 12)):
        for i in range(count):
            saved(root / f"kind {label}", f"{i}.png", pattern(label, 28, 28, rng, 1))
    return Made(root, (1, 28, 28), 3, 102, 6, 0.8)


def photographs(root: Path) -> Made:
    """100 pictures of 64 to 500 pixels in five formats, modes mixed, names not ASCII, one in fifty broken."""
    rng = np.random.default_rng(1)
    for i in range(100):
        label = i % 4
        picture = pattern(label, *rng.integers(64, 500, 2), rng, 3)
        suffix = ("jpg", "png", "webp", "bmp", "gif", "JPEG")[i % 6]
        folder = root / f"größe-{label}" / ("more" if i % 3 else ".")
        saved(folder, f"bild {i}.{suffix}", picture)
        if i % 50 == 7:
            file = folder / f"bild {i}.{suffix}"
            file.write_bytes(file.read_bytes()[:200])
    (root / "größe-0" / "notes.txt").write_text("not a picture", encoding="utf-8")
    return Made(root, (3, 64, 64), 4, 98, 8, 0.5)


def hundred(root: Path) -> Made:
    """100 classes of two to six small pictures, with splits of their own."""
    rng = np.random.default_rng(2)
    for label in range(100):
        for i in range(2 + label % 5):
            saved(root / "train" / f"{label:03d}", f"{i}.png", pattern(label, 16, 16, rng, 3))
        saved(root / "valid" / f"{label:03d}", "a.png", pattern(label, 16, 16, rng, 3))
        if label < 50:
            saved(root / "test" / f"{label:03d}", "a.png", pattern(label, 16, 16, rng, 3))
    return Made(root, (3, 16, 16), 100, 550, 2, 0.0)


@pytest.mark.parametrize(
    "make",
    [grey, *(pytest.param(make, marks=pytest.mark.slow) for make in (photographs, hundred))],
    ids=lambda make: make.__name__,
)
def test_one_command_each(make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: Made = make(tmp_path / "pictures")
    out, epochs = str(tmp_path / "runs"), f"train.epochs={made.epochs}"
    assert code_of("train", "folder", f"data.path={made.root}", *TINY, epochs, "--out", out) == 0
    [run] = Path(out).iterdir()
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    assert result["scorecard"]["accuracy"] >= made.least
    model = wc.load(run)
    assert (model.image_shape, len(model.classes)) == (made.shape, made.classes)

    assert code_of("eval", str(run)) == 0  # finds the folder by itself
    assert "accuracy" in capsys.readouterr().out
    assert code_of("eval", str(run), "--data", str(made.root), "--split", "train", "--save", str(tmp_path / "p")) == 0
    assert (tmp_path / "p" / "confusion.png").is_file()

    file = tmp_path / "answers.csv"
    assert code_of("predict", str(run), str(made.root), "--csv", str(file), "--top", "2") == 0
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == made.sound
    assert {row["label"] for row in rows} <= set(model.classes)
    assert all(float(row["confidence"]) >= float(row["confidence_2"]) for row in rows)
    right = sum(Path(row["id"]).parts[-2 if "more" not in row["id"] else -3] == row["label"] for row in rows)
    assert right / len(rows) >= made.least


def test_broken_files_are_told_and_the_rest_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = photographs(tmp_path / "pictures")
    words = ["train", "folder", f"data.path={made.root}", *TINY, "train.epochs=1", "--out", str(tmp_path / "runs")]
    assert code_of(*words) == 0
    said = capsys.readouterr().out
    assert "left out, for they cannot be read (2):" in said
    [run] = (tmp_path / "runs").iterdir()
    listed = (run / "left_out.txt").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 2 and all("bild " in line for line in listed)


def test_a_folder_of_cifar_pictures_is_the_same_training_set(tmp_path: Path) -> None:
    """Written as PNGs and read back, images are the same to the bit."""
    from weightclass.data import sources

    train, _ = sources.digits()
    for i in range(200):
        saved(tmp_path / "digits" / train.classes[train.labels[i]], f"{i:04d}.png", train.images[i, 0].numpy())
    splits = sources.load(sources.Data(name="folder", path=str(tmp_path / "digits"), test=40))
    assert splits.test is not None and splits.train.image_shape == (1, 8, 8)
    seen = {image.numpy().tobytes() for part in (splits.train, splits.test) for image in part.images[0 : len(part)]}
    assert seen == {image.numpy().tobytes() for image in train.images[:200]}
    assert (len(splits.train), len(splits.test)) == (160, 40)
