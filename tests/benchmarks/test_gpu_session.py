"""Runs go home in parts and come back whole: nothing is lost, nothing damaged is taken, and a visit ends in time."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import weightclass as wc
from benchmarks import gpu_session
from benchmarks.gpu_session import PAPER, bring_home, half, halved, parser, restore, split
from weightclass import recipe, run
from weightclass.results import read
from weightclass.run import Outcome

TINY = (
    *("train.epochs=2", "train.batch_size=64", "data.subset=256", "augment.ops=flip", "machine.device=cpu"),
    *("model.blocks=1,1", "model.channels=9,16", "machine.precision=float32", "machine.pad=on"),
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return wc.train("quickstart", *TINY, out=tmp_path_factory.mktemp("whole"), quiet=True)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = wc.train("quickstart", *TINY, out=tmp_path_factory.mktemp("away"), time_limit=1e-3, quiet=True)
    assert outcome.stopped == "time limit"  # which had passed when the first step was done
    return outcome


def test_a_run_goes_on_from_its_parts(done: Outcome, begun: Outcome, tmp_path: Path) -> None:
    files = bring_home([begun.folder], [begun.folder], tmp_path / "home", part=40_000)
    assert sum(".tar." in path.name for path in files) > 2
    assert restore(tmp_path / "home", tmp_path / "again") == [begun.folder.name]
    continued = wc.train("quickstart", *TINY, out=tmp_path / "again", quiet=True)
    assert continued.folder == tmp_path / "again" / begun.folder.name
    assert continued.result and done.result and continued.result.scorecard == done.result.scorecard


def test_a_finished_run_brings_back_a_model_file(done: Outcome, tmp_path: Path) -> None:
    bring_home([done.folder], [done.folder], tmp_path / "home")
    (name,) = restore(tmp_path / "home", tmp_path / "runs")
    assert read(tmp_path / "runs" / name) == done.result
    full, less = wc.load(done.folder).network, wc.load(tmp_path / "runs" / name / "weights-fp16.safetensors").network
    for mine, theirs in zip(full.parameters(), less.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_an_unfinished_runs_averaged_weights_are_without_padding(begun: Outcome) -> None:
    found = load_file(half(begun.folder))
    (checkpoint,) = (begun.folder / "checkpoint").glob("*.safetensors")
    kept = load_file(checkpoint)
    assert set(found) == {name.removeprefix("average/") for name in kept if name.startswith("average/")}
    assert found["conv1.weight"].shape[0] == 9 and kept["average/conv1.weight"].shape[0] == 16
    for name, tensor in found.items():
        cut = kept[f"average/{name}"][tuple(slice(size) for size in tensor.shape)]
        assert torch.equal(tensor, halved(cut))


def test_what_has_no_room_stays_and_is_named(
    done: Outcome, begun: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [done.folder, begun.folder]
    files = bring_home(both, both, tmp_path / "home", room=gpu_session.MIB + 1)
    assert [path.name for path in files] == ["results.tar.gz"]  # the small files come in any case
    said = capsys.readouterr().out
    assert said.count("stays here") == 3
    assert str(begun.folder) in said and str(done.folder) in said
    assert restore(tmp_path / "home", tmp_path / "runs") == sorted({path.name for path in both})


def test_parts_that_are_lost_or_damaged_are_refused(tmp_path: Path) -> None:
    split(bytes(range(250)), tmp_path, part=100)
    parts = sorted(tmp_path.iterdir())
    assert [path.stat().st_size for path in parts] == [100, 100, 50]
    parts[1].write_bytes(bytes(100))
    with pytest.raises(wc.UserError, match="do not make up"):
        restore(tmp_path, tmp_path / "runs")
    parts[1].unlink()
    with pytest.raises(wc.UserError, match=r"\[1, 3\]"):
        restore(tmp_path, tmp_path / "runs")


# --- queue -------------------------------------------------------------------------------------------------


def visit(monkeypatch: pytest.MonkeyPatch, work: Path, out: Path, *more: str, seconds: float = 600) -> list[str]:
    """The runs that come home of one queue command."""
    monkeypatch.setattr(gpu_session, "STARTED", time.monotonic())
    items = ("quickstart", "no-such-recipe", "quickstart train.seed=1")
    where = ("--work", str(work), "--out", str(out), "--time-limit", str(seconds))
    args = parser().parse_args(["queue", *items, *where, *more, "--every", *TINY])
    args.stage(args)
    shutil.rmtree(out.parent / "home", ignore_errors=True)
    return restore(out, out.parent / "home")


@pytest.mark.slow
def test_a_queue_trains_what_it_can_and_goes_on_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    really, limits = run.train, iter([1e9, 1e9, 1e-3])  # the last of the first visit is stopped after its first step

    def train(*given: str, time_limit: float, **more: Any) -> Outcome:
        assert 0 < time_limit < 540
        return really(*given, time_limit=next(limits, 1e9), quiet=True, **more)

    monkeypatch.setattr(run, "train", train)
    first = visit(monkeypatch, tmp_path / "here", tmp_path / "one")
    assert "failed: no-such-recipe: UserError: no recipe is called" in capsys.readouterr().out
    assert sorted(read(tmp_path / "home" / name) is None for name in first) == [False, True]
    second = visit(monkeypatch, tmp_path / "there", tmp_path / "two", "--from", str(tmp_path / "one"))
    assert second == first
    results = [json.loads((tmp_path / "home" / name / "result.json").read_text(encoding="utf-8")) for name in second]
    assert {result["seed"] for result in results} == {0, 1}
    assert len(list((tmp_path / "home").rglob("weights-fp16.safetensors"))) == 1  # the other's came the first time


def test_nothing_is_begun_that_has_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert visit(monkeypatch, tmp_path / "here", tmp_path / "one", seconds=100) == []
    assert capsys.readouterr().out.count("not begun,") == 3


def test_the_papers_recipes_are_there_in_its_order() -> None:
    named = [recipe.load(*item.split()) for item in PAPER]
    assert len({(each.name, each.recipe.train.seed) for each in named}) == len(PAPER)
    assert [each.name for each in named[:3]] == ["paper-97", "paper-97", "table5-row9"]
