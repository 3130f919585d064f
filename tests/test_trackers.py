"""Trackers show what metrics.jsonl says, once, however often the run was killed; their failures cost it nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weightclass import config, modelfile, recipe, run
from weightclass.errors import UserError
from weightclass.recipe import Recipe
from weightclass.runlog import Meter
from weightclass.trackers import Track, Trackers
from weightclass.training.checkpoint import Keeper

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # MLflow's models

BOTH = ("track.tensorboard=true", "track.mlflow=sqlite")
TINY = (
    *("model.blocks=1,1", "model.channels=4,8", "data.subset=130", "train.batch_size=50", "train.epochs=3"),
    *("machine.threads=1", "machine.precision=float32", "data.watch_test=true", "train.checkpoint_seconds=0.001"),
)
STEPS = 3  # an epoch
KEYS = {"train/loss", "train/accuracy", "test/loss", "test/accuracy", "lr", "images_per_second"}
FIGURES = {f"result/{name}" for name in ("accuracy", "nll", "params", "macs", "seconds")}


class Killed(Exception):
    pass


def record(epoch: int) -> dict[str, Any]:
    facts = {"epoch": epoch, "step": 3 * epoch, "train_loss": 1 / epoch, "lr": 0.1}
    return facts | {"time": {"seconds": 2.0 * epoch, "images_per_second": 50.0}}


def trackers(folder: Path, records: int = 0, **track: Any) -> Trackers:
    tree = config.to_tree(recipe.load("quickstart").recipe)
    return Trackers(Track(**track), tree, folder, [record(1 + i) for i in range(records)], Meter(9, 0, 3))


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = events(folder)
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def ours(folder: Path, key: str) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(each["epoch"], (each | each["time"])[key.replace("/", "_")]) for each in records]


def die_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Once at each of `steps`, between the epoch's record and its checkpoint: what was recorded is done again."""
    save, left = Keeper.save, set(steps)

    def dying(self: Keeper, state: Any) -> None:
        if state.step in left:
            left.remove(state.step)
            raise Killed
        save(self, state)

    monkeypatch.setattr(Keeper, "save", dying)


@pytest.mark.slow
def test_a_run_killed_twice_is_shown_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "draw", lambda *_: None)
    die_at(monkeypatch, STEPS, 2 * STEPS)
    for _ in range(2):
        with pytest.raises(Killed):
            run.train("quickstart", *TINY, *BOTH, out="all", quiet=True)
    outcome = run.train("quickstart", *TINY, *BOTH, out="all", quiet=True)
    assert (result := outcome.result)
    assert {path.name for path in tmp_path.iterdir()} == {"all"}  # MLflow puts nothing where it was called
    assert modelfile.load(outcome.folder).recipe.track == Track()  # a model that is passed on names no server

    shown = curves(outcome.folder)
    assert shown.keys() == KEYS | FIGURES
    assert len(list((outcome.folder / "tensorboard").iterdir())) == 3
    for key in KEYS:
        assert shown[key] == [(epoch, pytest.approx(value)) for epoch, value in ours(outcome.folder, key)]
    assert shown["result/accuracy"] == [(3, pytest.approx(result.scorecard.accuracy))]

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(tmp_path / 'all' / 'mlflow.db').as_posix()}")
    experiment = client.get_experiment_by_name("weightclass")
    assert experiment
    [logged] = client.search_runs([experiment.experiment_id])
    assert (logged.info.status, logged.info.run_name) == ("FINISHED", outcome.folder.name)
    assert logged.data.params["train.epochs"] == "3"
    assert logged.data.params["model.channels"] == "4,8"
    assert not any(key.startswith("track.") for key in logged.data.params)
    assert logged.data.metrics.keys() == KEYS | FIGURES
    for key in KEYS - {"images_per_second"}:  # of an epoch done twice it keeps the first
        history = client.get_metric_history(logged.info.run_id, key)
        assert [(metric.step, metric.value) for metric in history] == ours(outcome.folder, key)
    for key in ("images_per_second", "result/seconds"):
        steps = [metric.step for metric in client.get_metric_history(logged.info.run_id, key)]
        assert steps == ([1, 2, 3] if key in KEYS else [3])
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_viewer_that_looks_on_sees_no_epoch_twice(tmp_path: Path) -> None:
    first = trackers(tmp_path, tensorboard=True)
    for epoch in (1, 2):
        first.epoch(record(epoch))
    viewer = events(tmp_path)
    again = trackers(tmp_path, 1, tensorboard=True)
    again.epoch(record(2) | {"train_loss": 0.25})
    shown = viewer.Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in shown] == [(1, 1.0), (2, 0.25)]
    assert shown[1].wall_time - shown[0].wall_time == pytest.approx(2)  # of training, however long the run lay still


def test_tensorboard_shows_the_settings(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    trackers(tmp_path, tensorboard=True)
    content = events(tmp_path).PluginTagToContent("hparams")[SESSION_START_INFO_TAG]
    values = parse_session_start_info_plugin_data(content).hparams
    assert values["train.batch_size"].number_value == recipe.load("quickstart").recipe.train.batch_size
    assert values["optimizer.name"].string_value == "sgd"


def test_off_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Recipe().track == Track(tensorboard=False, mlflow="")
    for library in ("tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, library, None)  # an import would fail, and be told
    said: list[str] = []
    monkeypatch.setattr(Meter, "say", lambda self, text: said.append(text))
    tracking = trackers(tmp_path, 2)
    tracking.finish(3, {"accuracy": 0.5})
    assert (tracking.live, said, list(tmp_path.iterdir())) == ({}, [], [])


@pytest.mark.parametrize("override", BOTH)
def test_tracking_names_no_other_run(override: str) -> None:
    one, other = recipe.load("quickstart"), recipe.load("quickstart", override)
    assert one.recipe != other.recipe
    assert recipe.fingerprint(one.recipe, "data") == recipe.fingerprint(other.recipe, "data")


@pytest.mark.parametrize(
    ("override", "library"), [(BOTH[0], "tensorboard"), (BOTH[1], "mlflow"), (BOTH[1], "sqlalchemy")]
)
def test_a_missing_library_is_told_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=rf'^{key}: {library} is not.*pip install "weightclass\[{key[6:]}\]"'):
        run.train("quickstart", *TINY, override, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x"])
def test_a_server_that_is_not_there_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setattr(run, "draw", lambda *_: None)
    outcome = run.train("quickstart", *TINY, f"track.mlflow={uri}", out=tmp_path)
    assert outcome.result
    assert capsys.readouterr().out.count("MLflow is off until the run is next continued: ") == 1


def test_one_that_fails_later_is_left_alone_and_the_other_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def log(epoch: int, *_: object) -> None:
        calls.append(epoch)
        raise OSError(28, "No space\nleft")

    tracking = trackers(tmp_path, tensorboard=True)
    tracking.live = {"Broken": SimpleNamespace(log=log), **tracking.live}
    for epoch in (1, 2):
        tracking.epoch(record(epoch))
    tracking.finish(2, {"accuracy": 0.5})
    assert calls == [1]
    assert capsys.readouterr().out == "Broken is off until the run is next continued: [Errno 28] No space left\n"
    assert curves(tmp_path)["train/loss"] == [(1, 1.0), (2, 0.5)]


def test_time_spent_tracking_is_no_training_time(tmp_path: Path) -> None:
    tracking = trackers(tmp_path, tensorboard=True)
    before, tracking.meter.started = tracking.meter.started, 0.0
    tracking.epoch(record(1))
    assert before > tracking.meter.started > 0


@pytest.mark.slow
def test_runs_that_start_together_share_one_database(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "weightclass", "train", "quickstart", *TINY, BOTH[1], "--out", str(tmp_path)]
    processes = [subprocess.Popen([*command, f"train.seed={seed}"], stdout=subprocess.PIPE) for seed in range(3)]
    for process in processes:
        assert b"MLflow is off" not in process.communicate(timeout=300)[0]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}")
    experiment = client.get_experiment_by_name("weightclass")
    assert experiment
    assert [each.info.status for each in client.search_runs([experiment.experiment_id])] == ["FINISHED"] * 3
