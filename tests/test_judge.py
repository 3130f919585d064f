"""A finished model on labelled pictures and on unlabelled ones: which are judged, what is counted, what is written."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import weightclass as wc
from weightclass import judge, recipe, results
from weightclass.data import sources
from weightclass.errors import UserError
from weightclass.modelfile import Classifier, Prediction

TINY = (
    *("model.blocks=1,1", "model.channels=4,8", "data.subset=130", "train.batch_size=50", "train.epochs=2"),
    *("machine.threads=1", "machine.precision=float32", "data.validation=100"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightclass.run.draw", lambda *_: None)
        return wc.train("quickstart", *TINY, out=tmp_path_factory.mktemp("runs"), quiet=True).folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 60 test digits as a folder of PNGs, class folders in an order of their own."""
    root, (_, test) = tmp_path_factory.mktemp("pictures"), sources.digits()
    for i in range(60):
        folder = root / test.classes[test.labels[i]]
        folder.mkdir(exist_ok=True)
        Image.fromarray(test.images[i, 0].numpy()).save(folder / f"{i:03d}.png")
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "cache"))


# --- labelled ----------------------------------------------------------------------------------------------


def test_the_splits_of_the_recipe(run: Path) -> None:
    assert [wc.evaluate(run, split).n for split in ("train", "validation")] == [130, 100]
    before = results.readings(run)
    assert wc.evaluate(run).n == wc.evaluate(wc.load(run), "test").n == 360
    assert results.readings(run) == before + 2


def test_another_folder_is_judged_whole(run: Path, digits: Path) -> None:
    _, test = sources.digits()
    model = wc.load(run)
    card = wc.evaluate(model, data=str(digits))
    right = (model.logits(test.images[:60]).argmax(1) == test.labels[:60]).sum()
    assert (card.n, card.correct) == (60, right)


def test_classes_are_matched_by_name(run: Path, digits: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    for name in ("7", "2"):
        (some / name).mkdir(parents=True)
        for file in (digits / name).iterdir():
            (some / name / file.name).write_bytes(file.read_bytes())
    whole, part = (wc.evaluate(run, data=str(folder)) for folder in (digits, some))
    for name in ("2", "7"):
        assert part.per_class[name].recall == whole.per_class[name].recall
    (some / "2").rename(some / "two")
    with pytest.raises(UserError, match=r"class 'two' of the pictures is not one of the model's: choose from 0, 1, 2"):
        wc.evaluate(run, data=str(some))


def test_a_broken_picture_of_another_folder_is_named(run: Path, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "copy")
    (tmp_path / "copy" / "1" / "zzz.png").write_bytes(b"")
    judged = judge.labelled(wc.load(run), data=str(tmp_path / "copy"))
    assert (len(judged.images), judged.split, judged.left_out) == (60, "test", ("1/zzz.png: empty file",))


def test_looking_at_another_folder_counts_as_a_reading(run: Path, digits: Path) -> None:
    before = results.readings(run)
    wc.evaluate(run, data=str(digits))
    assert results.readings(run) == before + 1


def test_pictures_that_have_changed_are_not_split_anew(tmp_path: Path, digits: Path) -> None:
    """Another file shifts the draw: what was trained on would be judged on."""
    shutil.copytree(digits, tmp_path / "copy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightclass.run.draw", lambda *_: None)
        words = ("model.blocks=1,1", "model.channels=4,8", "augment.ops=flip", "train.epochs=1", "machine.threads=1")
        run = wc.train("folder", f"data.path={tmp_path / 'copy'}", *words, out=tmp_path, quiet=True).folder
    assert wc.evaluate(run).n == 12
    (tmp_path / "copy" / "0" / "more.png").write_bytes((tmp_path / "copy" / "1").glob("*.png").__next__().read_bytes())
    with pytest.raises(UserError, match="its pictures have changed since it was trained"):
        wc.evaluate(run)
    assert wc.evaluate(run, data=str(tmp_path / "copy")).n == 61


def test_a_published_model_takes_the_names_of_a_folder_but_not_for_good() -> None:
    model = coloured()
    model.facts["published"] = True
    assert judge._matched(model, ("cat", "dog")) == ("cat", "dog")
    assert model.classes == ("a", "b")
    for others in (("a", "dog"), ("cat", "dog", "cow"), ("b", "a", "c")):
        with pytest.raises(UserError, match="of the pictures is not one of the model's"):
            judge._matched(model, others)


def test_views_are_reported_apart(run: Path, tmp_path: Path) -> None:
    model = wc.load(run)
    cards = judge.scorecards(model, judge.labelled(model, "validation"), views=True, save=tmp_path)
    assert list(cards) == [judge.PLAIN, "flip", "flip+shift"]
    assert cards[judge.PLAIN] == wc.evaluate(run, "validation")
    assert len({card.nll for card in cards.values()}) == 3
    assert {path.name for path in tmp_path.glob("*.png")} >= {"confusion.png", "reliability.png"}


def test_images_of_another_shape_are_refused(run: Path) -> None:
    model = wc.load(run)
    model.image_shape = (1, 9, 9)
    with pytest.raises(UserError, match=r"takes uint8 images \(1, 9, 9\), got torch.uint8 \(1, 8, 8\)"):
        wc.evaluate(model, "validation")


# --- unlabelled --------------------------------------------------------------------------------------------


def coloured() -> Classifier:
    settings = recipe.load("quickstart", "model.blocks=1,1", "model.channels=4,8").recipe
    network = judge.modelfile.resnet.build(settings.model, (3, 32, 32), 2, seed=3).eval()
    return Classifier(network, settings, "made up", ("a", "b"), (3, 32, 32), (0.3,) * 3, (0.2,) * 3, {})


def test_files_folders_and_patterns(run: Path, digits: Path, tmp_path: Path) -> None:
    model = wc.load(run)
    answers, broken = judge.predict(model, [digits])
    assert not broken
    by_id = dict(answers)
    assert all(Path(name).is_file() for name in by_id)
    files = sorted(digits.glob("3/*.png"))
    some, _ = judge.predict(model, [str(digits / "3" / "*.png")])
    assert [name for name, _ in some] == [file.as_posix() for file in files]
    assert judge.predict(model, [digits / "3", *files])[0] == judge.predict(model, [digits / "3"])[0]
    assert [answer.confidence for _, answer in some] == pytest.approx([by_id[name].confidence for name, _ in some])
    seen: list[tuple[int, int]] = []
    judge.predict(model, [digits], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(60, 60)]


def test_many_pictures_are_answered_in_their_order(run: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wc.load(run)
    whole, _ = judge.predict(model, [digits], top=2)
    monkeypatch.setattr(judge, "TOGETHER", 7)
    pieces, _ = judge.predict(model, [digits], top=2)
    assert [name for name, _ in pieces] == [name for name, _ in whole]
    assert [answer.label for _, answer in pieces] == [answer.label for _, answer in whole]


def test_broken_pictures_are_listed_and_left_out(run: Path, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    answers, broken = judge.predict(wc.load(run), [tmp_path / "broken.png", digits])
    assert len(answers) == 60
    [line] = broken
    assert line.startswith(f"{tmp_path / 'broken.png'}: ")


def test_batches_without_labels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3072), np.uint8)
    (tmp_path / "test.pkl").write_bytes(pickle.dumps({"data": pixels, "ids": [f"no-{i}" for i in range(5)]}))
    (tmp_path / "test.bin").write_bytes(pixels.tobytes())
    model = coloured()
    named, _ = judge.predict(model, [tmp_path / "test.pkl"])
    numbered, _ = judge.predict(model, [tmp_path / "test.bin"])
    assert [name for name, _ in named] == [f"no-{i}" for i in range(5)]
    assert [name for name, _ in numbered] == list("01234")
    assert [answer for _, answer in named] == [answer for _, answer in numbered]
    expected = model.predict(torch.from_numpy(pixels.reshape(5, 3, 32, 32)))
    assert [answer for _, answer in named] == expected
    both, _ = judge.predict(model, [tmp_path / "test.bin", tmp_path / "test.pkl"])
    assert [name for name, _ in both] == [f"test.bin/{i}" for i in range(5)] + [f"test.pkl/no-{i}" for i in range(5)]
    model.image_shape = (3, 16, 16)
    smaller, _ = judge.predict(model, [tmp_path / "test.bin"])
    assert len(smaller) == 5


# --- what is written ---------------------------------------------------------------------------------------

TOP = (("c,t", 0.75), ("dög", 0.25))
ANSWERS = [("a/1.png", Prediction(*TOP[0], TOP)), ("2", Prediction(*TOP[0], TOP))]


def test_csv_and_json_lines(tmp_path: Path) -> None:
    judge.write(ANSWERS, tmp_path / "a.csv", tmp_path / "a.jsonl")
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines))
    assert rows[0] == ["id", "label", "confidence", "label_2", "confidence_2"]
    assert rows[1] == ["a/1.png", "c,t", "0.750000", "dög", "0.250000"]
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert records[1]["id"] == "2" and records[1]["label"] == "c,t"
    assert records[1]["top"][1] == {"label": "dög", "confidence": 0.25}
    single = [(name, answer._replace(top=answer.top[:1])) for name, answer in ANSWERS]
    judge.write(single, tmp_path / "b.csv", tmp_path / "b.jsonl")
    assert (tmp_path / "b.csv").read_text(encoding="utf-8").splitlines()[0] == "id,label,confidence"
    assert json.loads((tmp_path / "b.jsonl").read_text(encoding="utf-8").splitlines()[0]).keys() == {
        *("id", "label", "confidence")
    }


def shown(written: str) -> str:
    out = io.StringIO()
    Console(file=out, width=100).print(judge.table(ANSWERS, written))
    return out.getvalue()


def test_the_table_lists_the_answers_or_counts_them() -> None:
    assert "a/1.png  c,t 75.0%  dög 25.0%" in shown("")
    assert "2 answers in a.csv" in shown("a.csv")
    assert "c,t  2" in shown("a.csv")
