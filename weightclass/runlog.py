"""What a run says: metrics.jsonl for machines, and the terminal for people."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from weightclass.files import read_jsonl, write_jsonl


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


def human_seconds(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `1 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def human_bytes(count: float) -> str:
    """`812 B`, `2.8 MB` (decimal)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def left_out(lines: Sequence[str]) -> list[str]:
    """What to say of files that could not be read: the first few of them, and how many there are."""
    if not lines:
        return []
    more = [f"  and {len(lines) - 5:,} more"] if len(lines) > 5 else []
    return [f"left out, for they cannot be read ({len(lines):,}):", *(f"  {line}" for line in lines[:5]), *more]


@contextlib.contextmanager
def working(title: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A `progress(done, total)` for long work: a bar on a tty, else a line every ten seconds; both on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    out, spoken = Console(stderr=True, quiet=quiet), time.monotonic()
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def progress(done: int, total: int) -> None:
            nonlocal spoken
            bar.update(task, completed=done, total=total)
            if not out.is_terminal and time.monotonic() - spoken > 10:
                out.print(f"{title}: {done:,} of {total:,}")
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
        self._bar = self._live() if self.console.is_terminal and not quiet else None

    def _live(self) -> Any:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %  {task.fields[speed]} img/s  ETA {task.fields[eta]}"),
        )
        bar = Progress(*columns, console=self.console, transient=True, refresh_per_second=4)
        bar.start()
        fields = {"epoch": "-", "epochs": self.epochs, "speed": "-", "eta": "-"}
        bar.add_task("train", total=self.steps, completed=self.done, **fields)
        return bar

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
        if self._bar:
            epoch = (step - 1) * self.epochs // self.steps + 1
            fields = {"epoch": epoch, "speed": f"{self.speed:,.0f}", "eta": human_seconds(self.eta)}
            self._bar.update(self._bar.task_ids[0], completed=step, **fields)

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
        if self._bar:
            self._bar.stop()
            self._bar = None
