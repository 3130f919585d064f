"""Made-up studies, the same at every call: sheets of finished, failed and waiting runs with plausible numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from typing import Any, Literal

import msgspec

from weightclass import __version__
from weightclass.evaluation.metrics import ClassScore, Scorecard, wilson
from weightclass.results import Result
from weightclass.study.sheet import Line, Run, Sheet

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Split = Literal["test", "validation"]
Cell = tuple[int, int]  # row and seed


def card(accuracy: float, n: int = 10_000) -> Scorecard:
    """A scorecard of `n` (tens of) images, `accuracy` in 0..1 of them right, the mistakes spread over all classes."""
    of, right = n // len(CLASSES), round(accuracy * n)
    hits = [right // len(CLASSES) + (true < right % len(CLASSES)) for true in range(len(CLASSES))]
    others = len(CLASSES) - 1
    confusion = [
        [(of - hit) // others + ((said - true) % len(CLASSES) <= (of - hit) % others) for said in range(len(CLASSES))]
        for true, hit in enumerate(hits)
    ]
    for true, hit in enumerate(hits):
        confusion[true][true] = hit
    share = right / n
    score = ClassScore(n=of, precision=share, recall=share, f1=share)
    return Scorecard(
        n=n,
        correct=right,
        accuracy=share,
        interval=wilson(right, n),
        top5=min(1.0, share + 0.08),
        nll=1 - share,
        ece=0.02,
        bins=[],
        macro=score,
        per_class=dict.fromkeys(CLASSES, score),
        confusion=confusion,
    )


def result(accuracy: float, *, n: int = 10_000, split: Split = "test", seed: int = 0, **changed: Any) -> Result:
    """The result of a finished run; any other field by name."""
    facts: dict[str, Any] = {
        "name": "paper-97",
        "command": f"weightclass train paper-97 train.seed={seed}",
        "fingerprint": f"{seed:016x}",
        "version": __version__,
        "test_readings": int(split == "test"),
        "computed_on": "cpu, 1 threads, float32",
        "averaged": False,
        "params": 4_978_810,
        "macs": 1_180_000_000,
        "train_pflops": 106.2,
        "epochs": 300,
        "seconds": 600.0 + 6 * seed,
        "images_per_second": 25_000.0,
        "waiting": 0.01,
        "augmenting": 0.02,
        "saving": 0.001,
        "peak_memory": 2_000_000_000,
        "model_bytes": 19_950_000,
    }
    return Result(split=split, seed=seed, scorecard=card(accuracy, n), **(facts | changed))


def curve(accuracy: float, loss: float, epochs: int, splits: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """The records of metrics.jsonl: losses fall from ln 10, accuracies rise from 0.1, to those of the last epoch."""
    records = []
    for epoch in range(1, epochs + 1):
        done = 1.0 if epoch == epochs else 1 - math.exp(-5 * epoch / epochs)
        right, lost = 0.1 + (accuracy - 0.1) * done, math.log(10) + (loss - math.log(10)) * done
        record = {"epoch": epoch, "step": 100 * epoch, "train_loss": 0.9 * lost, "train_accuracy": 0.98 * right}
        record["lr"] = 0.05 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        for split in splits:
            record |= {f"{split}_accuracy": right, f"{split}_loss": lost}
        records.append(record | {"time": {"seconds": 2.0 * epoch, "images_per_second": 25_000.0}})
    return tuple(records)


def run(row: int, seed: int, *, epochs: int = 10, n: int = 10_000, split: Split = "test", **changed: Any) -> Run:
    """A finished run: a point more for each row, a little luck for each seed. `changed` are fields of its result."""
    luck = random.Random(f"{row} {seed}").gauss(0, 0.002)
    changed = {"fingerprint": f"{row:08x}{seed:08x}", "epochs": epochs} | changed
    done = result(min(0.995, 0.91 + 0.01 * row + luck), n=n, split=split, seed=seed, **changed)
    return Run(
        seed=seed,
        command=f"weightclass train paper-97 train.seed={seed}",
        folder=f"paper-97-{row:04x}{seed:04x}",
        result=done,
        curve=curve(done.scorecard.accuracy, done.scorecard.nll, epochs, (split,)),
    )


def sheet(
    rows: int = 3,
    seeds: int = 2,
    pilot: str = "",
    *,
    labels: Sequence[str] = (),
    waiting: Collection[Cell] = (),
    failed: Collection[Cell] = (),
    over: Collection[int] = (),
    epochs: int = 10,
    n: int = 10_000,
    split: Split = "test",
    **changed: Any,
) -> Sheet:
    """A study of `rows` rows and `seeds` runs each; cells are (row, seed).

    `waiting` have not run yet, `failed` never will; rows `over` the budget have 11M parameters. The second row has an
    assumed setting, the third a note, the last no published number. `changed` are fields of the sheet.
    """

    def params(row: int) -> int:
        return 11_173_962 if row in over else 4_978_810 - 1000 * row

    def cell(row: int, seed: int) -> Run:
        done = run(row, seed, epochs=epochs, n=n, split=split, params=params(row))
        if (row, seed) in failed:
            return msgspec.structs.replace(done, result=None, curve=done.curve[:2], failure="out of memory at epoch 3")
        return msgspec.structs.replace(done, result=None, curve=()) if (row, seed) in waiting else done

    def line(row: int) -> Line:
        last = row == rows - 1
        return Line(
            label=labels[row] if labels else f"SGD {row}",
            recipe="paper-97",
            settings=(f"optim.lr={0.1 * (row + 1):.1f}",),
            published=None if last else 92.0 + row,
            source="" if last else f"paper, Table 4 row {row + 1}",
            assumed=("optim.weight_decay=0.05",) if row == 1 else (),
            note="the notebook names another optimizer" if row == 2 else "",
            params=params(row),
            macs=1_180_000_000,
            over_budget=row in over,
            runs=tuple(cell(row, seed) for seed in range(seeds)),
        )

    facts: dict[str, Any] = {
        "name": "table4",
        "command": "weightclass study table4",
        "title": "Table 4: optimizers",
        "about": "The settings of the 97.12 % run with other optimizers.",
        "heading": "optimizer",
        "budget": "5M",
        "pilot": pilot,
        "compare": 0,
        "accuracy_figure": "Figure 4: optimizer vs accuracy",
        "loss_figure": "Figure 5: optimizer vs loss",
        "lines": tuple(map(line, range(rows))),
    }
    return Sheet(**(facts | changed))
