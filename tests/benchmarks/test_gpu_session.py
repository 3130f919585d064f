"""A run goes home in parts and comes back whole: nothing is lost, and nothing damaged is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import weightclass as wc
from benchmarks.gpu_session import bring_back, halved, restore, split
from weightclass.results import read
from weightclass.run import Outcome

TINY = ("train.epochs=2", "train.batch_size=64", "data.subset=256", "augment.ops=flip", "machine.device=cpu")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return wc.train("quickstart", *TINY, out=tmp_path_factory.mktemp("whole"), quiet=True)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = wc.train("quickstart", *TINY, out=tmp_path_factory.mktemp("away"), time_limit=1e-3, quiet=True)
    assert outcome.stopped == "time limit"  # which had passed when the first step was done
    return outcome


def test_a_run_goes_on_from_its_parts(done: Outcome, begun: Outcome, tmp_path: Path) -> None:
    files = bring_back(begun.folder, tmp_path / "home", part=400_000)
    assert sum(".tar." in path.name for path in files) > 1
    folder = restore(tmp_path / "home", tmp_path / "again")
    assert folder.name == begun.folder.name
    continued = wc.train("quickstart", *TINY, out=tmp_path / "again", quiet=True)
    assert continued.folder == folder
    assert continued.result.scorecard == done.result.scorecard


def test_a_finished_run_brings_back_a_model_file(done: Outcome, tmp_path: Path) -> None:
    files = bring_back(done.folder, tmp_path)
    assert [path.name for path in files] == [
        "environment.json",
        "metrics.jsonl",
        "result.json",
        "weights-fp16.safetensors",
    ]
    assert read(tmp_path) == done.result
    full, half = wc.load(done.folder).network, wc.load(files[-1]).network
    for mine, theirs in zip(full.parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_an_unfinished_run_brings_back_its_averaged_weights(begun: Outcome, tmp_path: Path) -> None:
    bring_back(begun.folder, tmp_path)
    found = load_file(tmp_path / "weights-fp16.safetensors")
    (checkpoint,) = (begun.folder / "checkpoint").glob("*.safetensors")
    kept = load_file(checkpoint)
    assert set(found) == {name.removeprefix("average/") for name in kept if name.startswith("average/")}
    for name, tensor in found.items():
        assert torch.equal(tensor, halved(kept[f"average/{name}"]))


def test_too_many_parts_are_an_error(begun: Outcome, tmp_path: Path) -> None:
    with pytest.raises(wc.UserError, match="come back"):
        bring_back(begun.folder, tmp_path, part=10_000)


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
