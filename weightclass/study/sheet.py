"""What a study came to: every row with its runs, in one file that tables, figures and reports are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from weightclass.files import atomic_write
from weightclass.results import Result, read_sheet

FILE_NAME = "sheet.json"


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One seed of a row."""

    seed: int
    command: str
    folder: str
    """Name of its run folder, beside `studies`."""
    result: Result | None = None
    """None where it has not finished yet."""
    curve: tuple[dict[str, Any], ...] = ()
    """The records of its metrics.jsonl: one an epoch, with epoch, train_loss, train_accuracy (0..1), lr, and
    validation_ or test_ accuracy and loss."""
    failure: str = ""
    """Why it failed, where it did."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a study's table."""

    label: str
    recipe: str
    settings: tuple[str, ...]
    """What distinguishes the row: its overrides, without those of the whole study."""
    published: float | None
    """The printed accuracy in %, None where nobody printed one."""
    source: str
    """Where it was printed."""
    assumed: tuple[str, ...]
    """Settings that no source gives."""
    note: str
    params: int
    macs: int
    over_budget: bool
    runs: tuple[Run, ...]

    @property
    def results(self) -> tuple[Result, ...]:
        """Of the finished runs, in the order of their seeds."""
        return tuple(run.result for run in self.runs if run.result)


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """A study with all that is known of its runs."""

    name: str
    command: str
    """That makes it again."""
    title: str
    about: str
    heading: str
    """Of the first column, the rows' labels."""
    budget: str
    """Parameters, such as "5M": rows at or over it are marked; "" marks none."""
    pilot: str
    """How the runs were shortened, "10 epochs, 10,000 images, width 1/8"; "" for runs in full."""
    compare: int
    """The row that the others are compared with."""
    accuracy_figure: str
    """Title of the figure of accuracy over epochs, such as "Figure 4: optimizer vs accuracy"."""
    loss_figure: str
    lines: tuple[Line, ...]

    @property
    def stem(self) -> str:
        """What its files are called."""
        return f"{self.name}-PILOT" if self.pilot else self.name

    @property
    def split(self) -> str:
        """What accuracies were read on, "test" or "validation"; "" before any run has finished."""
        return next((result.split for line in self.lines for result in line.results), "")

    @property
    def watched(self) -> str:
        """What the curves over epochs were read on, "test" or "validation"."""
        keys = {key for line in self.lines for run in line.runs for record in run.curve for key in record}
        return "test" if "test_accuracy" in keys else "validation"

    @property
    def comparable(self) -> bool:
        """Whether its accuracies are what was published: of the test set, by runs in full."""
        return not self.pilot and self.split == "test"

    @property
    def titles(self) -> dict[str, str]:
        """Of its pictures. The paper's "Test Loss" is called validation loss where it is that."""
        accuracy = self.accuracy_figure or f"{self.title}: accuracy over epochs"
        loss = self.loss_figure or f"{self.title}: loss over epochs"
        return {
            "accuracy": accuracy,
            "loss": loss if self.watched == "test" else loss.replace("Test", "Validation"),
            "params": f"{self.title}: accuracy against parameters",
            "pflops": f"{self.title}: accuracy against training compute",
        }


def write(sheet: Sheet, folder: Path) -> None:
    """Write `sheet.json` into the study's folder."""
    atomic_write(folder / FILE_NAME, msgspec.json.encode(sheet))


def read(folder: Path) -> Sheet:
    """The sheet in a study's folder. Raises UserError."""
    return read_sheet(folder / FILE_NAME, Sheet, "study")
