"""Optional trackers: a run's epochs shown in TensorBoard or MLflow too, through their own libraries, if asked for.

metrics.jsonl stays the truth: every sitting shows all that stands there again, in place of what was shown before. A
tracker that fails is left alone for the rest of the sitting.
"""

from __future__ import annotations

import contextlib
import os
import time
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
        settings = {
            f"{table}.{key}": ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            for table, values in recipe.items()
            if table != "track"
            for key, value in values.items()
        }
        for kind in [TensorBoard] * track.tensorboard + [MLflow] * bool(track.mlflow):
            with self._spared(kind.__name__):
                self.live[kind.__name__] = kind(track, folder, settings)
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


class TensorBoard:
    """RUN/tensorboard: an event file a sitting, each with all epochs so far, at which viewers forget the one before."""

    def __init__(self, track: Track, folder: Path, settings: dict[str, Any]) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=0)
        self.writer._get_file_writer().add_summary(hparams_pb(settings))
        self.writer.flush()

    def log(self, epoch: int, when: float, figures: dict[str, float]) -> None:
        for key, value in figures.items():
            self.writer.add_scalar(key, value, epoch, when)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class MLflow:
    """A run's MLflow run, whose id the run folder keeps; epochs that it has are not logged again."""

    def __init__(self, track: Track, folder: Path, settings: dict[str, Any]) -> None:
        import filelock

        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before the import, or it reports on its use
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")  # its 120 s and 7 retries would hold up the training
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        out, kept = folder.parent.absolute(), folder / "mlflow_run.txt"
        uri = f"sqlite:///{(out / 'mlflow.db').as_posix()}" if track.mlflow == "sqlite" else track.mlflow
        with filelock.FileLock(out / ".mlflow.lock", timeout=60):  # runs that start together: one makes the tables
            self.client = MlflowClient(uri)
            found = self.client.get_experiment_by_name("weightclass")
            experiment = found.experiment_id if found else self.client.create_experiment("weightclass")
        if not kept.exists():
            run = self.client.create_run(experiment, run_name=folder.name).info.run_id
            self.client.log_batch(run, params=[Param(key, str(value)) for key, value in settings.items()])
            atomic_write(kept, run)
        self.run = kept.read_text(encoding="utf-8")
        keys = self.client.get_run(self.run).data.metrics
        histories = [self.client.get_metric_history(self.run, key) for key in keys]
        self.known = {(metric.key, metric.step) for history in histories for metric in history}

    def log(self, epoch: int, when: float, figures: dict[str, float]) -> None:
        from mlflow.entities import Metric

        new = {key: value for key, value in figures.items() if (key, epoch) not in self.known}
        self.client.log_batch(self.run, [Metric(key, value, round(1000 * when), epoch) for key, value in new.items()])

    def close(self) -> None:
        self.client.set_terminated(self.run)
