"""Made-up searches, the same at every call: sheets of trials with plausible costs and accuracies."""

from __future__ import annotations

import random
from typing import Any

from msgspec.structs import replace

from tests.reference import sheets
from weightclass.evaluation.metrics import wilson
from weightclass.results import Result
from weightclass.search.sheet import Row, Sheet

REST = ("model.pool=avg(2)", "model.se=blocks", "optimizer.name=adamw", "optimizer.lr=0.00238", "schedule.peak=0.4")
OPS = ("crop(4, reflect)", "trivialaugment,crop(4, reflect),flip,cutout(16),mixup(0.2)")
WHY = "failed: the loss is not finite at step 33: lower optimizer.lr"


def row(number: int, state: str = "done", *, epochs: int = 4, held_out: int = 5000, **changed: Any) -> Row:
    """A trial whose size, speed and luck come from its number; any field by name."""
    dice = random.Random(number)
    blocks, size = [dice.randint(1, 4) for _ in range(4)], dice.random()
    channels = [round((16 + 24 * size) * 1.6**layer) for layer in range(4)]
    at = epochs if state == "done" else max(1, epochs // 4) if state == "pruned" else 0
    right = round(held_out * (0.62 + 0.1 * size + dice.gauss(0, 0.02) - 0.18 * (state == "pruned")))
    facts: dict[str, Any] = {
        "settings": ()
        if number == 0
        else ("model.blocks=" + ",".join(map(str, blocks)), *REST, f"augment.ops={OPS[1]}"),
        "network": f"{','.join(map(str, blocks))} x {','.join(map(str, channels))}",
        "params": 701_400 - 37 * dice.randrange(400),
        "macs": round(2e7 + 9e7 * size * dice.uniform(0.8, 1.1)),
        "ms": 1.2 + 4 * size * dice.uniform(0.7, 1.2) if state == "done" else None,
        "epochs": at,
        "accuracy": right / held_out if at else None,
        "interval": wilson(right, held_out) if state == "done" else None,
        "why": WHY if state == "failed" else "",
        "folder": f"small-cpu-{number:08x}",
    }
    return Row(number=number, state=state, **(facts | changed))  # type: ignore[arg-type]


def in_full(told: Sheet, *numbers: int) -> Sheet:
    """With finalists: trials of these numbers trained in full, each as much better as its number says."""

    def trained(one: Row) -> Row:
        right = round(told.held_out * (0.8 + one.number / 1000))
        return replace(one, full=right / told.held_out, full_interval=wilson(right, told.held_out))

    rows = tuple(trained(one) if one.number in numbers else one for one in told.rows)
    return replace(told, rows=rows, full_epochs=40)


def final(accuracy: float = 0.8412) -> Result:
    """Of the best recipe's full training."""
    return sheets.result(accuracy, name="small-cpu-found", command="weightclass train small-cpu-found.toml", epochs=40)


def sheet(done: int = 9, pruned: int = 10, failed: int = 1, *, opened: int = 0, **changed: Any) -> Sheet:
    """A search with so many trials of each state, the recipe itself finished and first; any field by name."""
    states = ["done"] * done + ["pruned"] * pruned + ["failed"] * failed + ["open"] * opened
    facts: dict[str, Any] = {
        "name": "small-cpu-0123abcd",
        "command": f"weightclass search small-cpu budget.params=701467 --trials {len(states)}",
        "recipe": "small-cpu",
        "limits": {"params": "701467", "macs": "120M"},
        "over": ("model", "optimizer", "schedule", "augment"),
        "epochs": 4,
        "seed": 0,
        "held_out": 5000,
        "rows": tuple(row(number, state) for number, state in enumerate(states)),
    }
    facts |= {"wanted": len(changed.get("rows", states))}
    return Sheet(**(facts | changed))
