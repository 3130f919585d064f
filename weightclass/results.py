"""What a run comes to: `result.json` in its folder, and the table that ends its output."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from weightclass.errors import UserError
from weightclass.evaluation.metrics import Scorecard
from weightclass.files import atomic_write, cured
from weightclass.runlog import human_bytes, human_seconds

T = TypeVar("T")
FILE_NAME = "result.json"
READINGS = "test_readings.jsonl"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a finished run; times are in seconds, over all its sessions."""

    name: str
    command: str
    fingerprint: str
    version: str
    seed: int
    split: Literal["test", "validation"]
    """What `scorecard` was read on: validation in development, test for a frozen recipe."""
    test_readings: int
    """How often the test set was looked at, by this run (kills and all) and by later `eval`s of its model."""
    scorecard: Scorecard
    computed_on: str
    """Device, threads and precision of the training."""
    averaged: bool
    """Whether the weights are a moving average (train.ema, or Lookahead's slow weights), not the last step's."""
    params: int
    macs: int
    train_pflops: float
    """6 x MACs x images seen (one forward pass is 2 FLOPs a MAC, the backward pass twice that; SAM does both twice), in
    10^15."""
    epochs: int
    seconds: float
    """Training time, evaluations left out."""
    images_per_second: float
    waiting: float
    """Share of the training time spent waiting for data."""
    augmenting: float = 0.0
    """Share of it spent augmenting and normalising; 0 where an earlier version counted that as waiting."""
    saving: float
    """Share of the training time spent writing checkpoints."""
    peak_memory: int
    """Bytes: the process's resident peak, on CUDA the allocator's."""
    model_bytes: int


def count_reading(folder: Path, why: str) -> int:
    """Note a look at the test set in the run folder *before* it is taken; returns how many there are now."""
    with cured(folder / READINGS), (folder / READINGS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"why": why, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}) + "\n")
    return readings(folder)


def readings(folder: Path) -> int:
    """How often the test set was looked at in this run."""
    path = folder / READINGS
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def write(folder: Path, result: Result) -> None:
    """Write `result.json`, last of all a run's files: where it is, the run is finished."""
    atomic_write(folder / FILE_NAME, msgspec.json.format(msgspec.json.encode(result), indent=2))


def read(folder: Path) -> Result | None:
    """The result in `folder`, None where there is none yet."""
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a result of this version ({error}); move the folder away to run again") from None


def read_sheet(path: Path, kind: type[T], called: str) -> T:
    """What a study or a search (`called`) has written of itself at `path`. Raises UserError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): name a {called}'s folder") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a {called} of this version ({error}); run the {called} again") from None


def table(result: Result, folder: Path) -> Any:
    """The run on one screen, for rich."""
    from rich.markup import escape
    from rich.table import Table

    card = result.scorecard
    rows = {
        f"{result.split} accuracy": f"[bold]{card.accuracy:.2%}[/]  (95 %: {card.interval.lo:.2%} to "
        f"{card.interval.hi:.2%}, {card.n:,} images)",
        "nll": f"{card.nll:.4f}",
        "computed on": result.computed_on,
        "weights": "moving average" if result.averaged else "last step",
        "parameters": f"{result.params:,}",
        "MACs an image": f"{result.macs / 1e6:,.1f} M",
        "model file": human_bytes(result.model_bytes),
        "training": f"{human_seconds(result.seconds)}, {result.epochs} epochs, {result.images_per_second:,.0f} img/s, "
        f"{result.train_pflops:.3g} PFLOPs",
        "augmentation": f"{result.augmenting:.1%} of it" if result.augmenting else "part of the waiting",
        "waiting for data": f"{result.waiting:.1%} of it",
        "saving checkpoints": f"{result.saving:.1%} of it",
        "peak memory": human_bytes(result.peak_memory),
        "test set read": f"{result.test_readings} time{'s' * (result.test_readings != 1)}",
        "folder": escape(str(folder)),
    }
    grid = Table(title=escape(result.name), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for label, text in rows.items():
        grid.add_row(label, text)
    return grid
