"""Whole tiny runs: what a folder holds, what counts as a test reading, and that stopping changes nothing."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import weightclass as wc
from tests.reference.pictures import read
from weightclass import config, files, recipe
from weightclass.data import sources
from weightclass.errors import UserError
from weightclass.files import run_lock
from weightclass.recipe import Recipe
from weightclass.run import Outcome
from weightclass.session import Session
from weightclass.training.checkpoint import Keeper

EPOCHS, STEPS = 3, 3  # 130 images in batches of 50
TINY = (
    *("model.blocks=1,1", "model.channels=4,8", "data.subset=130", "train.batch_size=50", f"train.epochs={EPOCHS}"),
    *("machine.threads=1", "machine.precision=float32", "train.ema=0.9"),
)


def train(out: Path, *overrides: str, **options: Any) -> Outcome:
    return wc.train("quickstart", *TINY, *overrides, out=out, quiet=True, **options)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than these runs."""
    monkeypatch.setattr("weightclass.run.draw", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed; not to be changed."""
    return train(tmp_path_factory.mktemp("finished")).folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_weights(folder: Path, other: Path) -> None:
    one, two = (load_file(path / "model.safetensors") for path in (folder, other))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


# --- a run nobody disturbs ---------------------------------------------------------------------------------


def test_the_folder_holds_the_whole_run(finished: Path) -> None:
    pictures = {f"{name}.png" for name in ("curves", "confusion", "reliability", "confused", "mistakes", "samples")}
    texts = {"recipe.toml", "environment.json", "metrics.jsonl", "result.json", "test_readings.jsonl"}
    assert set(content(finished)) == pictures | texts | {"model.safetensors"}  # and no checkpoint folder
    assert all(content(finished)[name].startswith(b"\x89PNG\r\n\x1a\n") for name in pictures)
    named = recipe.load("quickstart", *TINY)
    text = (finished / "recipe.toml").read_text(encoding="utf-8")
    assert config.build(config.parse_toml(text, "text"), Recipe, "text") == named.recipe
    assert finished.name == f"quickstart-{result(finished)['fingerprint'][:8]}"


def test_one_record_an_epoch(finished: Path) -> None:
    rows = records(finished)
    assert [(row["epoch"], row["step"]) for row in rows] == [(n, n * STEPS) for n in range(1, EPOCHS + 1)]
    keys = ["epoch", "step", "train_loss", "train_accuracy", "lr", "time"]
    assert all(list(row) == keys for row in rows)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_the_result_tells_of_the_run(finished: Path) -> None:
    facts, weights = result(finished), wc.weigh("quickstart", *TINY)
    assert facts["command"] == " ".join(["weightclass train quickstart", *TINY])
    assert (facts["split"], facts["scorecard"]["n"], facts["test_readings"]) == ("test", 360, 1)
    assert (facts["params"], facts["macs"], facts["averaged"]) == (weights.params, weights.macs, True)
    assert facts["model_bytes"] == (finished / "model.safetensors").stat().st_size
    assert facts["train_pflops"] == pytest.approx(6 * weights.macs * 130 * EPOCHS / 1e15)
    assert facts["seconds"] > 0
    assert 0 < facts["augmenting"] < 1 and 0 <= facts["waiting"] < 1
    decided = json.loads((finished / "environment.json").read_text(encoding="utf-8"))["decisions"]
    assert decided == {
        "device": "cpu",
        "threads": 1,
        "precision": "float32",
        "compile": False,
        "graphs": False,
        "pad": False,
        "micro_batch": 0,
        "recompute": False,
        "epochs": 0,
        "ranks": 1,
    }


def test_the_model_file_alone_gives_the_same_accuracy(finished: Path, tmp_path: Path) -> None:
    alone = shutil.copy(finished / "model.safetensors", tmp_path / "moved.safetensors")
    card = wc.evaluate(alone)
    facts = result(finished)
    assert (card.accuracy, card.confusion) == (facts["scorecard"]["accuracy"], facts["scorecard"]["confusion"])
    assert wc.load(alone).facts["accuracy"] == card.accuracy
    assert facts["test_readings"] == 1  # its folder is not the run's


def test_samples_are_what_a_run_would_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("weightclass.run.grids.samples", lambda *said: drawn.extend(said))
    wc.samples("quickstart", *TINY, "augment.ops=crop(2),cutout(3)", path=tmp_path / "s.png", images=10, draws=EPOCHS)
    columns, classes, path, title = drawn
    assert (path, title) == (tmp_path / "s.png", "quickstart: crop(2), cutout(3)")
    (plain, labels), *seen = columns
    assert len(set(labels.tolist())) == len(classes) == 10
    named = recipe.load("quickstart", *TINY, "augment.ops=crop(2),cutout(3)")
    found = sources.find(named.recipe.data)
    session = Session(named, recipe.weigh(named.recipe, found), found.load(None), tmp_path / "run", quiet=True)
    first = next(session.batches(0, 0)).images
    for image in session.pipeline.normalise(seen[0][0]):
        assert (first == image).flatten(1).all(1).any()
    for pictures in (plain, *(images for images, _ in seen)):
        assert sum(torch.equal(pictures, other) for other, _ in columns) == 1


@pytest.mark.parametrize(("batch", "images"), [(2, 2), (130, 8)])
def test_a_contact_sheet_trains_nothing_and_leaves_one_file(tmp_path: Path, batch: int, images: int) -> None:
    wc.samples("quickstart", f"train.batch_size={batch}", "data.subset=130", path=tmp_path / "new" / "s.png", draws=2)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["s.png"]
    assert read(tmp_path / "new" / "s.png").shape[0] == 52 + 22 + images * 142


def test_the_same_call_again_changes_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(finished)
    outcome = wc.train("quickstart", *TINY, out=finished.parent)
    assert (outcome.folder, outcome.stopped) == (finished, None)
    assert "finished already" in capsys.readouterr().out
    assert content(finished) == before


@pytest.mark.usefixtures("no_pictures")
def test_the_seed_decides_the_weights(finished: Path, tmp_path: Path) -> None:
    assert_same_weights(train(tmp_path).folder, finished)
    other = train(tmp_path, "train.seed=1").folder
    assert other.name != finished.name
    with pytest.raises(AssertionError):
        assert_same_weights(other, finished)


# --- readings of the test set ------------------------------------------------------------------------------


def test_evaluating_counts_as_a_reading(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / finished.name))
    wc.evaluate(folder)
    wc.evaluate(folder / "model.safetensors")
    assert wc.evaluate(folder, "train").n == 130
    assert result(folder)["test_readings"] == 3
    assert result(folder) == result(finished) | {"test_readings": 3}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("validation", r"its data has no validation images, only test, train: choose another --split"),
        ("tset", r"split 'tset': did you mean test\?"),
    ],
)
def test_a_split_that_is_not_there(finished: Path, split: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        wc.evaluate(finished, split)
    assert result(finished)["test_readings"] == 1


@pytest.mark.usefixtures("no_pictures")
def test_development_never_reads_the_test_set(tmp_path: Path) -> None:
    folder = train(tmp_path, "data.validation=100").folder
    facts, rows = result(folder), records(folder)
    assert (facts["split"], facts["scorecard"]["n"], facts["test_readings"]) == ("validation", 100, 0)
    assert all("validation_accuracy" in row and "test_accuracy" not in row for row in rows)
    assert rows[-1]["validation_accuracy"] == facts["scorecard"]["accuracy"]
    assert wc.evaluate(folder, "validation").accuracy == facts["scorecard"]["accuracy"]
    assert result(folder)["test_readings"] == 0


@pytest.mark.usefixtures("no_pictures")
def test_watching_the_test_set_counts_and_changes_no_weight(finished: Path, tmp_path: Path) -> None:
    folder = train(tmp_path, "data.watch_test=true").folder
    facts, rows = result(folder), records(folder)
    assert facts["test_readings"] == EPOCHS + 1
    assert [row["test_accuracy"] for row in rows][-1] == facts["scorecard"]["accuracy"]
    assert rows[-1]["test_loss"] == facts["scorecard"]["nll"]
    assert_same_weights(folder, finished)


# --- stopping and going on ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_a_time_limit_stops_and_the_same_call_goes_on(finished: Path, tmp_path: Path) -> None:
    """Each session has time for one step; the last finds nothing left to train and finishes."""
    for step in range(1, EPOCHS * STEPS + 1):
        outcome = train(tmp_path, time_limit=1e-6)
        assert (outcome.stopped, outcome.result) == ("time limit", None)
        steps = sorted(int(path.name[:9]) for path in (outcome.folder / "checkpoint").iterdir())
        assert steps == [step - 1, step][-min(step, 2) :]
        assert len(records(outcome.folder)) == step // STEPS
    outcome = train(tmp_path, time_limit=1e-6)
    assert outcome.result
    assert_same_weights(outcome.folder, finished)
    assert not (outcome.folder / "checkpoint").exists()
    rows = records(outcome.folder)
    times = [row.pop("time") for row in rows]
    assert rows == [{key: value for key, value in row.items() if key != "time"} for row in records(finished)]
    assert outcome.result.seconds >= times[-1]["seconds"] - 0.01  # over all sessions


@pytest.mark.usefixtures("no_pictures")
def test_stopping_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        outcome = wc.train("quickstart", *TINY, out=tmp_path, time_limit=1e-6)
    said = "".join(capsys.readouterr().out.split())
    assert f"continuingin{outcome.folder}atstep1of9" in said
    assert f"stopped(timelimit)atstep2of9,savedin{outcome.folder};thesamecommandcontinues" in said


def test_a_damaged_checkpoint_is_told_and_left_out(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pictures: None
) -> None:
    for _ in range(2):
        folder = train(tmp_path, time_limit=1e-6).folder
    newest = max((folder / "checkpoint").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    wc.train("quickstart", *TINY, out=tmp_path)
    out = capsys.readouterr().out
    assert f"checkpoint {newest.name} is damaged and was set aside" in out
    assert_same_weights(folder, finished)


def test_decisions_stand_and_may_not_be_contradicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # machine.threads is cosmetic: another value names the same folder
    folder = train(tmp_path, time_limit=1e-6).folder
    with pytest.raises(UserError, match=r"machine.threads = 2, but this run was started with 1: .*--out"):
        wc.train("quickstart", *TINY[:-3], "machine.threads=2", *TINY[-2:], out=tmp_path, quiet=True)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    automatic = [text for text in TINY if not text.startswith("machine.threads")]
    outcome = wc.train("quickstart", *automatic, out=tmp_path, quiet=True, time_limit=1e-6)
    assert outcome.folder == folder
    assert torch.get_num_threads() == 1


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    folder = train(tmp_path, time_limit=1e-6).folder
    with run_lock(folder), pytest.raises(UserError, match=rf"another process \(pid {os.getpid()}\) is using .*--out"):
        train(tmp_path)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("writes", [0, 3, 5, 8])
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    fsync, left = os.fsync, [2 * writes]  # each write syncs its file and its folder

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(Keeper, "due", lambda _: True)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(UserError, match=r"disk full: could not write .*run the same command again") as caught:
            train(tmp_path)
    assert "\n" not in str(caught.value)
    assert_same_weights(train(tmp_path).folder, finished)


# --- own pictures ------------------------------------------------------------------------------------------


def shapes(folder: Path, mode: str = "RGB", each: int = 60, side: int = 48) -> Path:
    """Circles, squares and triangles in any colour on any darker ground."""
    draw_of = np.random.default_rng(0)
    for label in ("circle", "square", "triangle"):
        (folder / label).mkdir(parents=True)
        for number in range(each):
            picture = Image.new("RGB", (side, side), tuple(draw_of.integers(0, 120, 3).tolist()))
            (x, y), r = draw_of.integers(14, side - 14, 2).tolist(), int(draw_of.integers(7, 13))
            pen, fill = ImageDraw.Draw(picture), tuple(draw_of.integers(130, 256, 3).tolist())
            if label == "triangle":
                pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill)
            else:
                (pen.ellipse if label == "circle" else pen.rectangle)((x - r, y - r, x + r, y + r), fill)
            picture.convert(mode).save(folder / label / f"{number}.png")
    return folder


@pytest.mark.slow
def test_own_pictures_and_a_budget_become_an_exported_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "cache"))
    machine = ("machine.threads=1", "machine.precision=float32")
    call: dict[str, Any] = {
        "data": str(shapes(tmp_path / "shapes")),
        "budget": "200K",
        "out": tmp_path / "runs",
        "quiet": True,
    }
    outcome = wc.train("", "train.epochs=fit", *machine, time_limit=25.0, **call)
    outcome = outcome if outcome.result else wc.train("", "train.epochs=fit", *machine, **call)  # on a busy machine
    told = outcome.result
    assert told and told.split == "test"
    assert told.scorecard.n == 36
    assert told.scorecard.accuracy > 0.6
    assert 194_000 < told.params < 200_000
    assert f"train.epochs={told.epochs}" in told.command
    [handed] = wc.export(outcome.folder, ["onnx"])
    assert handed.path.exists()


@pytest.mark.usefixtures("no_pictures")
def test_grey_pictures_and_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "cache"))
    grey = shapes(tmp_path / "shapes", "L", each=3)
    quick = ("train.epochs=1", "machine.threads=1", "machine.precision=float32", "data.size=16")
    outcome = wc.train("", *quick, data=str(grey), budget="5k", out=tmp_path, quiet=True)
    assert outcome.result and outcome.result.params < 5000
    assert wc.load(outcome.folder).image_shape == (1, 16, 16)


# --- refusals ----------------------------------------------------------------------------------------------


def test_over_budget_is_refused_before_data_is_touched(tmp_path: Path) -> None:
    nowhere = f"data.path={tmp_path / 'nowhere'}"
    with pytest.raises(UserError, match=r"params 701,466 is not under the budget of 700,000 \(budget.params\)"):
        wc.train("small-cpu", nowhere, "budget.params=700000", out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match=r"data.path = .*nowhere"):
        wc.train("small-cpu", nowhere, out=tmp_path / "runs")


def test_the_public_functions_stay_functions() -> None:
    """A folder weightclass/train would take the place of `wc.train` as soon as it is imported."""
    package = Path(wc.__file__).parent
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__"):
            importlib.import_module(".".join(["weightclass", *parts]))
    assert wc.evaluate.__module__ == "weightclass.judge"
    assert wc.train.__module__ == wc.weigh.__module__ == wc.samples.__module__ == "weightclass.run"
    assert wc.load.__module__ == "weightclass.modelfile"
    assert wc.UserError is UserError
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = wc.trian
