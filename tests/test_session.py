"""A sitting of a run: built from its recipe, resumed from its folder, judging on the right images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from PIL import Image

from weightclass import recipe
from weightclass.data import sources
from weightclass.data.dataset import Dataset
from weightclass.data.store import Stored
from weightclass.session import Observer, Session
from weightclass.stopping import Stopper
from weightclass.training.loop import fit

TINY = (
    *("model.blocks=1,1", "model.channels=4,8", "data.subset=130", "train.batch_size=50", "train.epochs=2"),
    *("machine.threads=1", "machine.precision=float32", "augment.ops=crop(1),flip"),
)


def sit(folder: Path, *overrides: str) -> Session:
    named = recipe.load("quickstart", *TINY, *overrides)
    found = sources.find(named.recipe.data)
    return Session(named, recipe.weigh(named.recipe, found), found.load(None), folder, quiet=True)


def test_batches_from_any_step_on_are_those_of_the_whole_epoch(tmp_path: Path) -> None:
    session = sit(tmp_path)
    whole = list(session.batches(1, 0))
    for first in range(session.loader.steps):
        for batch, same in zip(session.batches(1, first), whole[first:], strict=True):
            assert torch.equal(batch.images, same.images)
            assert torch.equal(batch.labels, same.labels)
    assert not torch.equal(next(session.batches(0, 0)).images, whole[0].images)


def test_the_normalisation_is_measured_on_the_training_images_unless_given(tmp_path: Path) -> None:
    session = sit(tmp_path / "measured")
    assert (session.pipeline.mean, session.pipeline.std) == session.splits.train.mean_std()
    given = sit(tmp_path / "given", "augment.mean=0.5", "augment.std=0.25")
    assert (given.pipeline.mean, given.pipeline.std) == ((0.5,), (0.25,))


def test_augmentation_is_timed_apart_from_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = sit(tmp_path)
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    serve, normalise = session.loader.epoch, session.pipeline.normalise

    def slowly(seconds: float, work: Any) -> Any:
        clock[0] += seconds
        return work

    monkeypatch.setattr(session.loader, "epoch", lambda *at: (slowly(8.0, batch) for batch in serve(*at)))
    monkeypatch.setattr(session.pipeline, "normalise", lambda images: slowly(3.0, normalise(images)))
    fit(session.state, session.plan, session.batches, session.keeper, Observer(session, Stopper()))
    steps = session.plan.steps
    assert (session.state.waited, session.state.augmented) == (8.0 * steps, 3.0 * steps)
    again = sit(tmp_path).state
    assert (again.waited, again.augmented) == (8.0 * steps, 3.0 * steps)


def test_a_second_sitting_starts_where_the_first_saved(tmp_path: Path) -> None:
    first = sit(tmp_path)
    assert fit(first.state, first.plan, first.batches, first.keeper, Observer(first, Stopper())) is None
    second = sit(tmp_path)
    assert second.state.step == first.plan.steps == 2 * second.loader.steps
    assert second.metrics.records == first.metrics.records
    for mine, theirs in zip(second.state.model.parameters(), first.state.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("held_out", "name", "images"), [(100, "validation", 100), (0, "test", 360)])
def test_development_is_judged_on_images_held_out_for_it(tmp_path: Path, held_out: int, name: str, images: int) -> None:
    session = sit(tmp_path, f"data.validation={held_out}")
    assert session.judged_on == name
    card, logits = session.score(session.judged_on)
    assert (card.n, logits.shape) == (images, (images, 10))


def test_the_averaged_weights_are_the_ones_judged(tmp_path: Path) -> None:
    session = sit(tmp_path, "train.ema=0.5")
    assert session.state.average is not None
    session.state.average.twin.get_parameter("linear.bias").data[7] = 1e6
    assert (session.score("test")[1].argmax(1) == 7).all()


def test_padding_is_the_machines_and_what_is_judged_is_without_it(tmp_path: Path) -> None:
    plain, padded = sit(tmp_path / "plain"), sit(tmp_path / "padded", "machine.pad=on")
    assert plain.network is plain.state.evaluated
    assert [p.shape for p in padded.network.parameters()] == [p.shape for p in plain.network.parameters()]
    assert padded.state.model.get_parameter("conv1.weight").shape[0] == 8
    for session in (plain, padded):
        assert fit(session.state, session.plan, session.batches, session.keeper, Observer(session, Stopper())) is None
    torch.testing.assert_close(padded.score("test")[1], plain.score("test")[1], rtol=1e-3, atol=1e-3)
    again = sit(tmp_path / "padded")  # decided at the first start
    assert again.state.step == padded.plan.steps and again.state.model.get_parameter("conv1.weight").shape[0] == 8


def test_a_folder_from_before_padding_goes_on_without_it(tmp_path: Path) -> None:
    sit(tmp_path)
    path = tmp_path / "environment.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    del facts["decisions"]["pad"], facts["decisions"]["graphs"]
    path.write_text(json.dumps(facts), encoding="utf-8")
    assert sit(tmp_path).state.model.get_parameter("conv1.weight").shape[0] == 4


def test_lookahead_is_judged_on_its_slow_weights(tmp_path: Path) -> None:
    settings = ("train.ema=0", "train.lookahead=4", "train.sam=0.05", "model.dropout=0.1")
    logits = []
    for step in (0, 6):  # the second sitting settles anew, on the same bits
        session = sit(tmp_path, *settings)
        assert (session.state.step, session.plan.steps) == (step, 6)
        fit(session.state, session.plan, session.batches, session.keeper, Observer(session, Stopper()))
        assert session.state.lookahead is not None
        slow = session.state.lookahead.slow.parameters()
        assert all(torch.equal(a, b) for a, b in zip(session.state.evaluated.parameters(), slow, strict=True))
        logits.append(session.score("test")[1])
    assert torch.equal(*logits)


def test_a_first_step_that_compiles_does_not_shorten_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = sit(tmp_path)
    clock = iter([100.0, 101.0, 103.0])
    observer = Observer(session, Stopper())
    monkeypatch.setattr("weightclass.session.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(session.meter, "stepped", lambda *_: None)
    monkeypatch.setattr(type(session.meter), "seconds", 1.0)
    for _ in range(3):
        observer.stepped(session.state, 50, 0.0)
    assert observer.slowest_step == 2.0


def test_an_evaluation_is_reserved_for_before_the_step_that_ends_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = sit(tmp_path, "data.validation=100")
    asked: list[float] = []
    stopper = Stopper()
    monkeypatch.setattr(stopper, "reason", asked.append)
    monkeypatch.setattr(type(session.meter), "speed", 20.0)
    observer = Observer(session, stopper)
    for step in (session.loader.steps - 2, session.loader.steps - 1, session.loader.steps):
        session.state.step = step
        observer.should_stop(session.keeper)
    session.plan = replace(session.plan, train=msgspec.structs.replace(session.plan.train, ema=0.0, lookahead=5))
    session.state.step = session.plan.steps
    observer.should_stop(session.keeper)
    assert asked.pop() == 1 + session.loader.steps * 50 / 20.0  # an epoch more, for the statistics of slow weights
    assert asked == [1.0, 6.0, 1.0]  # 100 images at the 20 a second of training
    observer.evaluation, session.state.step = 2.0, session.loader.steps - 1
    observer.should_stop(session.keeper)
    assert asked[-1] == 4.0


def test_a_cut_is_told_and_taken_again_by_later_sittings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = sit(tmp_path)
    session.meter.quiet = False
    session.cut(replace(session.plan, micro_batch=10, recompute=True))
    said = "not enough memory: the same step goes on, 10 images at a time, its blocks computed twice"
    assert said in capsys.readouterr().out
    later = sit(tmp_path)
    assert (later.plan.micro_batch, later.plan.recompute) == (10, True)
    assert (later.plan.precision, later.plan.device) == (session.plan.precision, session.plan.device)


@pytest.mark.parametrize(("memory", "streams"), [("1kB", True), ("1GB", False), (0, False)])
def test_a_set_that_does_not_fit_is_streamed(tmp_path: Path, memory: str, streams: bool) -> None:
    named = recipe.load("quickstart", *TINY, f"machine.memory={memory}")
    found = sources.find(named.recipe.data)
    splits = found.load(None)
    (tmp_path / "images.bin").write_bytes(splits.train.images[:].numpy().tobytes())
    stored = Stored(tmp_path / "images.bin", tuple(splits.train.images.shape), "")
    splits = replace(splits, train=Dataset(stored, splits.train.labels, splits.train.classes))
    session = Session(named, recipe.weigh(named.recipe, found), splits, tmp_path / "run", quiet=True)
    assert session.loader.streams is streams
    for batch, same in zip(session.batches(0, 0), sit(tmp_path / "held").batches(0, 0), strict=True):
        assert torch.equal(batch.images, same.images) and torch.equal(batch.labels, same.labels)


def test_the_run_folder_says_where_the_pictures_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in "ab":
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (9, 9), 40 * i).save(tmp_path / "pictures" / label / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "cache"))
    named = recipe.load("folder", "data.path=pictures", "model.channels=4,4,4,4", "machine.threads=1")
    found = sources.find(named.recipe.data)
    Session(named, recipe.weigh(named.recipe, found), found.load(None), tmp_path / "run", quiet=True)
    assert recipe.load(str(tmp_path / "run" / "recipe.toml")).recipe.data.path == str(tmp_path / "pictures")
