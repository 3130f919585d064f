"""What a search has come to: a row a trial, which of them are on the front, and the final training of the best."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from weightclass.evaluation.metrics import Interval
from weightclass.files import atomic_write
from weightclass.results import Result, read_sheet

FILE_NAME = "search.json"
COSTS = ("params", "macs", "ms")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A trial."""

    number: int
    """0: the recipe itself."""
    state: Literal["done", "pruned", "failed", "open"]
    settings: tuple[str, ...]
    """What distinguishes it from the recipe."""
    network: str
    """In short, such as "2,2,2,2 x 16,32,64,128"."""
    params: int
    macs: int
    ms: float | None = None
    """Of one image on one thread; measured of finished trials."""
    epochs: int = 0
    accuracy: float | None = None
    """On the images held out, after so many epochs."""
    interval: Interval | None = None
    """95 %, of a finished trial's accuracy."""
    full: float | None = None
    """A finalist's accuracy on the same images after a training in full."""
    full_interval: Interval | None = None
    why: str = ""
    """Why it failed."""
    folder: str = ""


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """A search with all that is known of its trials."""

    name: str
    command: str
    """That continues it, or makes it again."""
    recipe: str
    limits: dict[str, str]
    """Of the budget, such as {"params": "1M"}; and "latency_ms"."""
    over: tuple[str, ...]
    wanted: int
    """Trials."""
    epochs: int
    """Of a trial."""
    full_epochs: int = 0
    """Of a finalist's training."""
    seed: int
    held_out: int
    """Images that the accuracies were read on."""
    rows: tuple[Row, ...]
    final: Result | None = None
    """The best recipe, trained in full."""
    final_folder: str = ""

    @property
    def done(self) -> list[Row]:
        """Trials that were trained to their end, the best first: finalists before others; of equal ones the cheaper."""
        rows = [row for row in self.rows if row.state == "done"]
        return sorted(rows, key=lambda row: (-(row.full or 0), -(row.accuracy or 0), row.macs, row.number))

    @property
    def best(self) -> Row | None:
        """The one to train in full."""
        return next(iter(self.done), None)

    @property
    def base(self) -> Row | None:
        """The recipe itself, where it was trained to its end."""
        return next((row for row in self.done if row.number == 0), None)

    def front(self, cost: str) -> list[Row]:
        """Finished trials that no other beats in accuracy and `cost` (of COSTS), the cheapest first."""
        known = [row for row in self.done if getattr(row, cost) is not None]
        known.sort(key=lambda row: (getattr(row, cost), -(row.accuracy or 0)))
        best, front = (-1.0, 0), []
        for point, row in (((row.accuracy or 0.0, getattr(row, cost)), row) for row in known):
            if point[0] > best[0] or point == best:
                best = point
                front.append(row)
        return front


def write(sheet: Sheet, folder: Path) -> None:
    """Write `search.json` into the search's folder."""
    atomic_write(folder / FILE_NAME, msgspec.json.format(msgspec.json.encode(sheet), indent=1))


def read(folder: Path) -> Sheet:
    """The sheet in a search's folder. Raises UserError."""
    return read_sheet(folder / FILE_NAME, Sheet, "search")
