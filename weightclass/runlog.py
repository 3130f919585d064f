"""What a run says: metrics.jsonl for machines, and the terminal for people."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from weightclass.files import read_jsonl, write_jsonl

Progress = Callable[[int, int], object]
"""What long work tells: how much of it is done, and how much there is."""


class Metrics:
    """`metrics.jsonl`: one line an epoch. All times stand under the key "time"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = read_jsonl(path)

    def rewind(self, step: int) -> None:
        """Forget the records after `step`: the run resumes there and will write them again."""
        self._write([record for record in self.records if record["step"] <= step])

    def append(self, record: dict[str, Any]) -> None:
        """Add one record; the file is replaced whole, so a kill leaves it with or without the record."""
        self._write([*self.records, record])

    def _write(self, records: list[dict[str, Any]]) -> None:
        self.records = records
        write_jsonl(self.path, records)


def console() -> Any:
    """The rich console on standard output; wide enough for tables where there is no terminal."""
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the program, a training too

    return Piped(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=False)


def say(text: str) -> None:
    """A line on standard output at once. A closed pipe, a full disk under the log: no reason to end anything."""
    with contextlib.suppress(OSError):
        out = console()
        out.print(text, markup=False)
        out.file.flush()


def human_seconds(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `1 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def short(number: float, unit: str = "") -> str:
    """Three figures and a decimal prefix: `4.98 M`, `1.18 G`, `701 kB`."""
    rounded = float(f"{number:.3g}")
    power = min(int(math.log10(max(rounded, 1)) // 3), 3)
    digits = max(2 - int(math.log10(rounded / 1000**power)), 0) if power else 0
    return f"{rounded / 1000**power:.{digits}f} {' kMG'[power].strip()}{unit}".strip()


def human_bytes(count: float) -> str:
    """`812 B`, `2.81 MB`."""
    return short(count, "B")


def left_out(lines: Sequence[str]) -> list[str]:
    """What to say of files that could not be read: the first few of them, and how many there are."""
    if not lines:
        return []
    more = [f"  and {len(lines) - 5:,} more"] if len(lines) > 5 else []
    return [f"left out, for they cannot be read ({len(lines):,}):", *(f"  {line}" for line in lines[:5]), *more]


def _bar(console: Any, shown: bool) -> Any:
    """rich's live bar between a task's description and its percentage."""
    from rich.progress import BarColumn, Progress

    columns = ("{task.description}", BarColumn(), "{task.percentage:3.0f} %")
    return Progress(*columns, console=console, transient=True, disable=not shown)


@contextlib.contextmanager
def working(title: str, quiet: bool = False) -> Iterator[Progress]:
    """For long work: a bar on a tty, else a line every ten seconds; both on stderr."""
    from rich.console import Console

    out, spoken = Console(stderr=True, quiet=quiet), time.monotonic()
    with _bar(out, out.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def progress(done: int, total: int) -> None:
            nonlocal spoken
            told = f"{title}: {done:,} of {total:,}"
            bar.update(task, description=told, completed=done, total=total)
            if not out.is_terminal and time.monotonic() - spoken > 10:
                out.print(told)
                spoken = time.monotonic()

        yield progress


class Meter:
    """Progress of a training: a live bar on a tty, one plain line an epoch otherwise, silent if `quiet`."""

    def __init__(self, steps: int, done: int, epochs: int, quiet: bool = False) -> None:
        self.steps, self.done, self.first, self.epochs = steps, done, done, epochs
        self.images, self.paused = 0, 0.0
        self.started = time.perf_counter()
        self.quiet = quiet
        self.console = console()
        self._bar = _bar(self.console, self.console.is_terminal and not quiet)
        self._bar.start()
        self._task = self._bar.add_task(f"epoch -/{epochs}", total=steps, completed=done)

    @property
    def seconds(self) -> float:
        """Wall time of this session."""
        return time.perf_counter() - self.started

    @property
    def speed(self) -> float:
        """Images a second over this session, evaluation left out."""
        return self.images / max(self.seconds - self.paused, 1e-9)

    @property
    def eta(self) -> float:
        """Seconds to the end, evaluations included."""
        return (self.steps - self.done) * self.seconds / max(self.done - self.first, 1)

    def stepped(self, step: int, images: int) -> None:
        """One more step."""
        self.done, self.images = step, self.images + images
        epoch = (step - 1) * self.epochs // self.steps + 1
        told = f"epoch {epoch}/{self.epochs}  {self.speed:,.0f} img/s  ETA {human_seconds(self.eta)}"
        self._bar.update(self._task, description=told, completed=step)

    def epoch(self, record: dict[str, Any]) -> None:
        """Print an epoch's line."""
        parts = [f"epoch {record['epoch']:>{len(str(self.epochs))}}/{self.epochs}"]
        parts += [f"loss {record['train_loss']:.4f}", f"train {100 * record['train_accuracy']:.2f} %"]
        for split in ("validation", "test"):
            if f"{split}_accuracy" in record:
                parts.append(f"{split} {100 * record[f'{split}_accuracy']:.2f} %")
        parts += [f"lr {record['lr']:.4f}", f"{self.speed:,.0f} img/s", f"ETA {human_seconds(self.eta)}"]
        self.say("  ".join(parts))

    def say(self, text: str) -> None:
        """One line, above the bar where there is one."""
        if not self.quiet:
            try:
                self.console.print(text, markup=False)
                self.console.file.flush()
            except OSError:  # a closed pipe, a full disk under the log: no reason to lose a training
                self.quiet = True

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()
