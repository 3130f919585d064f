"""A model asked about pictures: which files are meant, in what order it answers, and what is written."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from weightclass import ask, recipe
from weightclass.data import sources
from weightclass.model import networks
from weightclass.modelfile import Classifier, Prediction


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 60 test digits as a folder of PNGs, class folders in an order of their own."""
    root, (_, test) = tmp_path_factory.mktemp("pictures"), sources.digits()
    for i in range(60):
        folder = root / test.classes[test.labels[i]]
        folder.mkdir(exist_ok=True)
        Image.fromarray(test.images[i, 0].numpy()).save(folder / f"{i:03d}.png")
    return root


def classifier(*shape: int) -> Classifier:
    settings = recipe.load("quickstart", "model.blocks=1,1", "model.channels=4,8").recipe
    size = shape[0], shape[1], shape[2]
    network = networks.build(settings.model, size, 10, seed=3).eval()
    return Classifier(network, settings, "made up", tuple("abcdefghij"), size, (0.3,) * size[0], (0.2,) * size[0], {})


def test_files_folders_and_patterns(digits: Path) -> None:
    model = classifier(1, 8, 8)
    answers, broken = ask.predict(model, [digits])
    assert not broken
    by_id = dict(answers)
    assert all(Path(name).is_file() for name in by_id)
    files = sorted(digits.glob("3/*.png"))
    some, _ = ask.predict(model, [str(digits / "3" / "*.png")])
    assert [name for name, _ in some] == [file.as_posix() for file in files]
    assert ask.predict(model, [digits / "3", *files])[0] == ask.predict(model, [digits / "3"])[0]
    assert [answer.confidence for _, answer in some] == pytest.approx([by_id[name].confidence for name, _ in some])
    seen: list[tuple[int, int]] = []
    ask.predict(model, [digits], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(60, 60)]


def test_many_pictures_are_answered_in_their_order(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier(1, 8, 8)
    whole, _ = ask.predict(model, [digits], top=2)
    monkeypatch.setattr(ask, "TOGETHER", 7)
    pieces, _ = ask.predict(model, [digits], top=2)
    assert [name for name, _ in pieces] == [name for name, _ in whole]
    assert [answer.label for _, answer in pieces] == [answer.label for _, answer in whole]


def test_broken_pictures_are_listed_and_left_out(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    answers, broken = ask.predict(classifier(1, 8, 8), [tmp_path / "broken.png", digits])
    assert len(answers) == 60
    [line] = broken
    assert line.startswith(f"{tmp_path / 'broken.png'}: ")


def test_batches_without_labels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3072), np.uint8)
    (tmp_path / "test.pkl").write_bytes(pickle.dumps({"data": pixels, "ids": [f"no-{i}" for i in range(5)]}))
    (tmp_path / "test.bin").write_bytes(pixels.tobytes())
    model = classifier(3, 32, 32)
    named, _ = ask.predict(model, [tmp_path / "test.pkl"])
    numbered, _ = ask.predict(model, [tmp_path / "test.bin"])
    assert [name for name, _ in named] == [f"no-{i}" for i in range(5)]
    assert [name for name, _ in numbered] == list("01234")
    assert [answer for _, answer in named] == [answer for _, answer in numbered]
    expected = model.predict(torch.from_numpy(pixels.reshape(5, 3, 32, 32)))
    assert [answer for _, answer in named] == expected
    both, _ = ask.predict(model, [tmp_path / "test.bin", tmp_path / "test.pkl"])
    assert [name for name, _ in both] == [f"test.bin/{i}" for i in range(5)] + [f"test.pkl/no-{i}" for i in range(5)]
    model.image_shape = (3, 16, 16)
    smaller, _ = ask.predict(model, [tmp_path / "test.bin"])
    assert len(smaller) == 5


# --- what is written ---------------------------------------------------------------------------------------

TOP = (("c,t", 0.75), ("dög", 0.25))
ANSWERS = [("a/1.png", Prediction(*TOP[0], TOP)), ("2", Prediction(*TOP[0], TOP))]


def test_csv_and_json_lines(tmp_path: Path) -> None:
    ask.write(ANSWERS, tmp_path / "a.csv", tmp_path / "a.jsonl")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines))
    assert rows[0] == ["id", "label", "confidence", "label_2", "confidence_2"]
    assert rows[1] == ["a/1.png", "c,t", "0.750000", "dög", "0.250000"]
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert records[1]["id"] == "2" and records[1]["label"] == "c,t"
    assert records[1]["top"][1] == {"label": "dög", "confidence": 0.25}
    single = [(name, answer._replace(top=answer.top[:1])) for name, answer in ANSWERS]
    ask.write(single, tmp_path / "b.csv", tmp_path / "b.jsonl")
    assert (tmp_path / "b.csv").read_text(encoding="utf-8").splitlines()[0] == "id,label,confidence"
    assert json.loads((tmp_path / "b.jsonl").read_text(encoding="utf-8").splitlines()[0]).keys() == {
        *("id", "label", "confidence")
    }


def shown(written: str, capsys: pytest.CaptureFixture[str]) -> str:
    ask.show(ANSWERS, written)
    return capsys.readouterr().out


def test_a_pipe_gets_tabs_and_whole_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("", capsys).splitlines()[0] == "a/1.png\tc,t\t0.7500\tdög\t0.2500"


def test_answers_in_a_file_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown("a.csv", capsys)
    assert "2 answers in a.csv" in out and "c,t  2" in out


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ask, "console", lambda: Console(force_terminal=True, width=60, no_color=True, highlight=False))
    assert "a/1.png  c,t 75.0%  dög 25.0%" in shown("", capsys)
    monkeypatch.setattr(ask, "LISTED", 1)
    assert "2 answers (--csv and --json list them)" in shown("", capsys)


def test_what_is_no_picture_and_no_batch_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "nameless")
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    answers, broken = ask.predict(classifier(3, 9, 9), [tmp_path / "nameless", tmp_path / "x.heic"])
    assert [name for name, _ in answers] == [(tmp_path / "nameless").as_posix()]
    assert "a HEIC picture or a film, which is not read: convert it to JPEG" in broken[0]
