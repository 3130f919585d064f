"""Optional trackers: a run's epochs shown in TensorBoard or MLflow too, through their own libraries, if asked for.

metrics.jsonl stays the truth. Every sitting first brings a tracker up to what stands there, then adds epoch by epoch,
so that a killed run is neither doubled nor has holes. A tracker that fails is left alone for the rest of the sitting.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from weightclass.config import Table, Tree
from weightclass.errors import UserError
from weightclass.files import atomic_write
from weightclass.runlog import Meter

_LIBRARIES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


class Track(Table):
    """Recipe table [track]. None of it can change the weights (`Recipe.cosmetic`)."""

    tensorboard: bool = False
    mlflow: str = ""
    """ "sqlite" (mlflow.db beside the run folders) or any tracking URI; "" is off."""


def check(track: Track) -> None:
    """Refuse a tracker whose library is not installed; imports nothing."""
    for key, libraries in _LIBRARIES.items():
        for library in libraries if getattr(track, key) else ():
            if find_spec(library) is None:
                cure = f'pip install "weightclass[{key}]", or leave track.{key} out'
                raise UserError(f"track.{key}: {library} is not installed: {cure}")


class Trackers:
    """Those that `track` asks for, brought up to `records` of metrics.jsonl. What they cost is no training time."""

    def __init__(self, track: Track, recipe: Tree, folder: Path, records: list[dict[str, Any]], meter: Meter) -> None:
        self.meter, self.live = meter, {}
        self.origin = time.time() - (records[-1]["time"]["seconds"] if records else 0)  # as if it had never paused
        parameters = {key: value for key, value in _flat(recipe) if not key.startswith("track.")}
        for kind in [TensorBoard] * track.tensorboard + [MLflow] * bool(track.mlflow):
            with self._spared(kind.__name__):
                self.live[kind.__name__] = kind(track, folder, parameters)
        for record in records:
            self.epoch(record)

    def epoch(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl; its train_loss goes by the name train/loss, after which viewers group."""
        figures = {key.replace("_", "/", 1): value for key, value in record.items() if isinstance(value, float)}
        figures["images_per_second"] = record["time"]["images_per_second"]
        self._each("log", record["epoch"], self.origin + record["time"]["seconds"], figures)

    def finish(self, epoch: int, figures: dict[str, float]) -> None:
        """The result's figures, at the last epoch."""
        self._each("log", epoch, time.time(), {f"result/{key}": value for key, value in figures.items()})
        self._each("close")

    def _each(self, what: str, *facts: Any) -> None:
        for name, tracker in list(self.live.items()):
            with self._spared(name):
                getattr(tracker, what)(*facts)

    @contextlib.contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        """The training from `name`'s failures and, on its clock, from its time."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            self.live.pop(name, None)
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            self.meter.say(f"{name} is off until the run is next continued: {reason}")
        self.meter.started += time.perf_counter() - started


def _flat(tree: Tree, above: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """`train.epochs`, 30; lists as a recipe's overrides have them."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, ",".join(map(str, value)) if isinstance(value, list | tuple) else value


class TensorBoard:
    """RUN/tensorboard: an event file a sitting, each with all epochs so far, so that the last one counts."""

    def __init__(self, track: Track, folder: Path, parameters: dict[str, Any]) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        self.path = folder / "tensorboard" / f"events.out.tfevents.{time.time_ns()}"
        self.path.parent.mkdir(exist_ok=True)
        self._write(file_version="brain.Event:2")
        # A viewer forgets what the files before said; were they deleted, one that is open would never see this one.
        self._write(session_log={"status": "START"})
        self._write(summary=hparams_pb(parameters))

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = {"wall_time": time.time()} | event
        with self.path.open("ab") as file:
            RecordWriter(file).write(event_pb2.Event(**event).SerializeToString())  # type: ignore[attr-defined]

    def log(self, epoch: int, when: float, figures: dict[str, float]) -> None:
        values = [{"tag": key, "simple_value": value} for key, value in figures.items()]
        self._write(wall_time=when, step=epoch, summary={"value": values})

    def close(self) -> None:
        """Nothing is open."""


class MLflow:
    """A run's MLflow run, found again by a tag that the run folder keeps; epochs that it has are not logged again."""

    def __init__(self, track: Track, folder: Path, parameters: dict[str, Any]) -> None:
        import filelock

        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before the import, or it reports on its use
        for key, value in {
            "HTTP_REQUEST_TIMEOUT": "5",
            "HTTP_REQUEST_MAX_RETRIES": "1",
            "LOGGING_LEVEL": "ERROR",
        }.items():
            os.environ.setdefault(f"MLFLOW_{key}", value)  # its 120 s and 7 retries would hold up the training
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 2  # 10 take 100 s where a database is down
        uri, artifacts, out = track.mlflow, None, folder.parent.absolute()
        if uri == "sqlite":
            uri, artifacts = f"sqlite:///{(out / 'mlflow.db').as_posix()}", (out / "mlflow-artifacts").as_uri()
        with filelock.FileLock(out / ".mlflow.lock", timeout=60):  # runs that start together: one makes the tables
            self.client = MlflowClient(uri)
            found = self.client.get_experiment_by_name("weightclass")
            experiment = found.experiment_id if found else self.client.create_experiment("weightclass", artifacts)
        if not (path := folder / "mlflow_id.txt").exists():
            atomic_write(path, uuid.uuid4().hex)
        tags = {"weightclass_id": path.read_text(encoding="utf-8")}
        runs = self.client.search_runs([experiment], f"tags.weightclass_id = '{tags['weightclass_id']}'")
        run = runs[0] if runs else self.client.create_run(experiment, tags=tags, run_name=folder.name)
        self.run = run.info.run_id
        if not run.data.params:
            self.client.log_batch(self.run, params=[Param(key, str(value)) for key, value in parameters.items()])
        histories = [self.client.get_metric_history(self.run, key) for key in run.data.metrics]
        self.known = {(metric.key, metric.step) for history in histories for metric in history}

    def log(self, epoch: int, when: float, figures: dict[str, float]) -> None:
        from mlflow.entities import Metric

        new = {key: value for key, value in figures.items() if (key, epoch) not in self.known}
        self.client.log_batch(self.run, [Metric(key, value, round(1000 * when), epoch) for key, value in new.items()])

    def close(self) -> None:
        self.client.set_terminated(self.run)
