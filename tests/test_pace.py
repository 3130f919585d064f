"""train.epochs = "fit": a number measured once, that ends in time, stands, and trains as if it had been written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import weightclass as wc
from weightclass import pace, recipe
from weightclass.data import sources
from weightclass.data.sources import Splits
from weightclass.device import Decisions
from weightclass.errors import UserError
from weightclass.evaluation import predict
from weightclass.files import read_jsonl
from weightclass.pace import MARGIN, Pace
from weightclass.run import Outcome
from weightclass.session import Session, decided
from weightclass.stopping import Stopper

TINY = (
    *("model.blocks=1,1", "model.channels=4,8", "data.subset=130", "train.batch_size=50"),  # 50, 50 and 30 images
    *("machine.threads=1", "machine.precision=float32", "train.ema=0"),
)
FIT = (*TINY, "train.epochs=fit")
DECIDED = Decisions(device="cpu", threads=1, precision="float32", compile=False)


def train(out: Path, *overrides: str, **options: Any) -> Outcome:
    return wc.train("quickstart", *overrides, out=out, quiet=True, **options)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightclass.run.draw", lambda *_: None)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A machine that needs 10 s an epoch and 20 s around them; the seconds of each measuring."""
    asked: list[float] = []

    def measure(named: Any, weights: Any, splits: Any, folder: Path, seconds: float, stopper: Stopper) -> Pace:
        asked.append(seconds)
        return Pace(speed=13.0, epoch=10.0, around=20.0, decisions=DECIDED)

    monkeypatch.setattr(pace, "measure", measure)
    return asked


# --- reckoning ---------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.floats(0.01, 1e5), st.floats(1e-3, 1e4), st.floats(0, 1e3))
def test_the_largest_number_of_epochs_that_ends_in_time(seconds: float, epoch: float, around: float) -> None:
    epochs = Pace(1.0, epoch, around, DECIDED).epochs(seconds)
    assert epochs >= 1
    assert epochs == 1 or around + epochs * epoch <= seconds * (1 - MARGIN) * (1 + 1e-9)
    assert around + (epochs + 1) * epoch > seconds * (1 - MARGIN) * (1 - 1e-9)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a clock of its own, a machine that trains 100 images a second, takes 7 s more for each of the first two steps
    of a size, judges 1,000 a second, and needs no time for all else."""
    now, seen = [1000.0], list[int]()
    really: tuple[Callable[..., Any], Callable[..., Any]] = Session.batches, predict.logits

    def batches(self: Session, epoch: int, first: int) -> Any:
        for batch in really[0](self, epoch, first):
            seen.append(size := len(batch.labels))
            now[0] += size / 100 + 7 * (seen.count(size) <= 2)
            yield batch

    def logits(model: Any, images: Any, *more: Any) -> Any:
        now[0] += len(images) / 1000
        return really[1](model, images, *more)

    monkeypatch.setattr(Session, "batches", batches)
    monkeypatch.setattr(predict, "logits", logits)
    for clock in ("perf_counter", "monotonic"):
        monkeypatch.setattr(time, clock, lambda: now[0])
    yield
    monkeypatch.undo()


def measure(folder: Path, *overrides: str, seconds: float = 1.5, stopper: Stopper | None = None) -> Pace:
    named = recipe.load("quickstart", *FIT, *overrides)
    found = sources.find(named.recipe.data)
    splits: Splits = found.load(None)
    return pace.measure(
        named, recipe.weigh(named.recipe, found), splits, folder / ".pace", seconds, stopper or Stopper()
    )


@pytest.mark.usefixtures("slow")
def test_an_even_pace_is_measured_and_what_comes_before_and_after_it(tmp_path: Path) -> None:
    found = measure(tmp_path)
    assert found.speed == pytest.approx(100)
    assert found.epoch == pytest.approx(1.3)
    assert found.around == pytest.approx(4 * 7 + 360 / 100 + 5)  # the 360 test images as if trained on, pictures
    assert found.decisions == DECIDED
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("slow")
def test_what_is_evaluated_after_each_epoch_counts(tmp_path: Path) -> None:
    assert measure(tmp_path, "data.validation=100").epoch == pytest.approx(1.3 + 0.1)
    assert measure(tmp_path, "data.watch_test=true").epoch == pytest.approx(1.3 + 0.36)  # which nobody has looked at


@pytest.mark.usefixtures("slow")
def test_of_settling_and_of_dropped_images(tmp_path: Path) -> None:
    found = measure(tmp_path, "train.lookahead=5", "train.drop_last=true")
    assert found.epoch == pytest.approx(1.0)
    assert found.around == pytest.approx(2 * 7 + 100 / 100 + 360 / 100 + 5)


@pytest.mark.usefixtures("slow")
def test_ctrl_c_ends_the_measuring(tmp_path: Path) -> None:
    stopper = Stopper()
    stopper.asked = "Ctrl-C"
    started = time.monotonic()
    measure(tmp_path, seconds=1e6, stopper=stopper)
    assert time.monotonic() - started < 10


# --- a run -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_a_fitted_run_is_the_run_of_that_many_epochs(tmp_path: Path, measured: list[float]) -> None:
    """Decided once: killed after each step, then under other limits and none, it goes on to the same end."""
    first = train(tmp_path, *FIT, time_limit=55.0)  # (55 x 0.94 - 20) / 10 = 3 epochs; ends at once, by the real clock
    assert first.result
    assert measured == [pytest.approx(55 * 0.05, abs=0.5)]
    pieces = tmp_path / "pieces"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Stopper, "reason", lambda *_: "time limit")
        for limit in (55.0, 1000.0, None):
            outcome = train(pieces, *FIT, time_limit=limit)
            assert (outcome.stopped, outcome.folder.name) == ("time limit", first.folder.name)
    last = train(pieces, *FIT)
    plain = train(tmp_path, *TINY, "train.epochs=3")
    assert len(measured) == 2
    assert last.result and plain.result
    assert last.result.epochs == 3
    assert last.result.command == first.result.command == plain.result.command
    assert plain.folder.name != first.folder.name
    weights = [load_file(run.folder / "model.safetensors") for run in (first, last, plain)]
    assert all(torch.equal(weights[0][name], other[name]) for other in weights for name in other)
    text = (last.folder / "recipe.toml").read_text(encoding="utf-8")
    assert "epochs = 3" in text
    assert wc.load(last.folder).recipe.train.epochs == 3
    decisions = json.loads((last.folder / "environment.json").read_text(encoding="utf-8"))["decisions"]
    assert decisions["epochs"] == 3
    assert train(pieces, *FIT).result == last.result  # finished already


@pytest.mark.usefixtures("measured")
def test_one_line_tells_what_was_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for limit in (55.4, 25.0):
        monkey = pytest.MonkeyPatch()
        monkey.setattr(Stopper, "reason", lambda *_: "time limit")
        wc.train("quickstart", *FIT, out=tmp_path / str(limit), time_limit=limit)
        monkey.undo()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fit: ")]
    assert lines[0] == "fit: 13 img/s measured, 3 epochs in the 55 s left"
    assert lines[1].startswith("fit: 13 img/s measured, 1 epoch in the 25 s left (one takes 30 s: ")


@pytest.mark.usefixtures("measured")
def test_what_does_not_go_with_so_few_epochs_is_refused(tmp_path: Path) -> None:
    warm = ("schedule.name=cosine", "schedule.warmup=3")
    with pytest.raises(UserError, match=r"fitted: schedule.warmup = 3 epochs leaves nothing of train.epochs = 3"):
        train(tmp_path, *FIT, *warm, time_limit=55.0)
    assert decided(next(tmp_path.iterdir())) is None


def test_without_a_time_limit_there_is_nothing_to_fit_to(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --time-limit 30m, or name a number of epochs"):
        train(tmp_path, *FIT)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_measuring_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*said: Any) -> Pace:
        said[-1].asked = "Ctrl-C"
        return Pace(1.0, 1.0, 1.0, DECIDED)

    monkeypatch.setattr(pace, "measure", interrupted)
    outcome = train(tmp_path, *FIT, time_limit=55.0)
    assert (outcome.stopped, decided(outcome.folder)) == ("Ctrl-C", None)


def test_weighing_and_samples_need_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("weightclass.run.grids.samples", lambda *said: drawn.extend(said))
    assert wc.weigh("quickstart", *FIT) == wc.weigh("quickstart", *TINY)
    wc.samples("quickstart", *FIT, images=1, draws=1)
    assert drawn[-1] == "quickstart: crop(1)"


def test_elsewhere_it_is_one_line() -> None:
    with pytest.raises(UserError, match=r'train.epochs = "fit" is for `weightclass train` alone'):
        _ = recipe.load("quickstart", "train.epochs=fit").recipe.train.length


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_measured_killed_and_started_again_without_a_limit(tmp_path: Path) -> None:
    """Where nobody takes the machine meanwhile, the first run ends in time; the second is killed on its way."""
    words = ["data.subset=400", "machine.threads=1", "machine.precision=float32", "train.checkpoint_seconds=0.1"]
    started = time.monotonic()
    outcome = train(tmp_path / "one", *words, "train.epochs=fit", time_limit=14.0)
    assert time.monotonic() - started < 14
    assert outcome.result or outcome.stopped == "time limit"

    out = tmp_path / "two"
    command = [sys.executable, "-m", "weightclass", "train", "quickstart", *words, "train.epochs=fit"]
    running = subprocess.Popen([*command, "--time-limit", "14s", "--out", str(out), "--quiet"])
    while running.poll() is None and len(read_jsonl(next(out.glob("*/metrics.jsonl"), out / "none"))) < 3:
        time.sleep(0.01)
    running.kill()
    running.wait()
    assert not list(out.glob("*/result.json"))
    last = train(out, *words, "train.epochs=fit")
    assert last.result and last.result.epochs > 3
    plain = train(tmp_path / "plain", *words, f"train.epochs={last.result.epochs}")
    assert plain.result and last.result.command == plain.result.command
    one, two = (load_file(run.folder / "model.safetensors") for run in (last, plain))
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert {path.name for path in last.folder.iterdir()} == {path.name for path in plain.folder.iterdir()}
