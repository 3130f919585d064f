"""Running studies: every run once, by however many processes, on however many machines, share the folder of runs.

A run's own lock is the only agreement between them. Whoever finds it held goes on to the next run, and comes back: to
skip a run that was finished meanwhile, or to go on with one whose process died.
"""

from __future__ import annotations

import hashlib
import shlex
import time
from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from weightclass import recipe, results, run
from weightclass.data import sources
from weightclass.data.sources import Data
from weightclass.errors import UserError
from weightclass.files import Busy, Unwritable, atomic_write, held, read_jsonl, safe_name
from weightclass.recipe import Named
from weightclass.runlog import human_seconds, say
from weightclass.stopping import Stopper
from weightclass.study import figure, plan, sheet, table
from weightclass.study.plan import FULL, Cell, Short, Study
from weightclass.study.sheet import Line, Run, Sheet
from weightclass.workers import helping

POLL = 5.0
"""Seconds between two looks at runs that other processes hold."""
SHEET = 5.0
"""Seconds of a time limit that are kept for a study's tables, figures and page."""
TRIES = 2
FAILED = "failed.json"
UNMARKED = ("machine.", "track.", "data.path=", "train.checkpoint_seconds=")
"""Settings that leave a study what it is; all others make a pilot of it."""


class Job(NamedTuple):
    """A run to be done, and what it is called meanwhile."""

    title: str
    named: Named


class Failure(msgspec.Struct):
    """`failed.json` in a run's folder, until it succeeds."""

    tries: int = 0
    why: str = ""


def run_studies(
    names: Sequence[str],
    *settings: str,
    out: str | Path = "runs",
    seeds: Sequence[int] = (),
    short: Short = FULL,
    jobs: int = 1,
    ray: str | None = None,
    time_limit: float | None = None,
    quiet: bool = False,
) -> tuple[list[tuple[Sheet, Path]], str | None]:
    """Train what the studies called `names` still lack, then write their tables and figures below `out`/studies.

    `settings` go to every run, `seeds` replace the studies' own, `short` makes pilots of them, `jobs` processes share
    the cores, or those of the Ray cluster at `ray`. Returns each sheet with its folder, and why it stopped before all
    was done, if so. Raises UserError.
    """
    reserve = min(SHEET * len(names), (time_limit or 0) / 2)
    deadline = None if time_limit is None else time.monotonic() + time_limit - reserve
    studies = {name: plan.load(name) for name in names}
    if len({_stem(name) for name in studies}) < len(studies):
        raise UserError(f"{', '.join(studies)}: two of one name, whose tables would replace each other; rename a file")
    cells = {name: plan.cells(study, seeds or study.seeds, short, settings) for name, study in studies.items()}
    todo: dict[Path, Job] = {}
    for cell in (cell for several in cells.values() for cell in several):
        folder = folder_of(cell, out)
        if folder.name[-8:] not in {each.name[-8:] for each in todo}:  # equal settings are one run
            _run(cell, folder)  # what is damaged there is told before the work, not after it
            todo[folder] = Job(f"{cell.row.label}, seed {cell.seed}", cell.named)
    with helping(work, (todo, out, True), min(jobs, len(todo)), ray, deadline, out) as stopper:
        stopped = work(todo, out, quiet, stopper)
    marks = ", ".join([*short.parts(), *(text for text in settings if not text.startswith(UNMARKED))])
    flags = [*settings, *short.flags(), *(["--seeds", ",".join(map(str, seeds))] if seeds else [])]
    sheets = {name: gather(name, study, cells[name], out, marks, flags) for name, study in studies.items()}
    return [(told, _write(told, out)) for told in sheets.values()], stopped


def folder_of(cell: Cell, out: str | Path) -> Path:
    """Where a run lies; its data is read once to know."""
    settings = cell.named.recipe
    return run.folder_of(cell.named, recipe.fingerprint(settings, _digest(settings.data)), out)  # type: ignore[arg-type]


@cache
def _digest(data: Data) -> str:
    return sources.load(data).digest()


# --- the work ----------------------------------------------------------------------------------------------


def work(todo: dict[Path, Job], out: str | Path, quiet: bool, stopper: Stopper) -> str | None:
    """Train, one after another, what nobody has; returns why it stopped early, or None when all is finished.

    A run that fails is tried once more after the others, and then left, with its reason in `failed.json`. A full disk
    is nobody's failure: it ends the work.
    """
    queue, busy = deque(todo), 0
    while queue:
        folder = queue.popleft()
        if _passed_over(folder, todo[folder]):
            continue
        if reason := stopper.reason():
            return reason
        try:
            if held(folder):
                raise Busy
            outcome = run.carry_out(todo[folder].named, out, stopper, quiet)
        except Busy:
            queue.append(folder)
            busy += 1
            if busy == len(queue):
                say(f"waiting for {busy} run{'s' * (busy > 1)} that other processes hold")
            if busy >= len(queue):  # nothing else is left to do
                time.sleep(POLL if stopper.deadline is None else min(POLL, max(stopper.deadline - time.monotonic(), 0)))
        except (Unwritable, OSError):
            raise
        except Exception as error:  # one run's trouble is no reason to lose the others
            _note_failure(folder, todo[folder], error)
            queue.append(folder)
        else:
            busy = 0
            if outcome.stopped:
                return outcome.stopped
            _finished(folder, outcome, todo)
    return None


def settled(folder: Path) -> bool:
    """Whether there is nothing to do, or nothing to be done."""
    return (folder / results.FILE_NAME).exists() or read_failure(folder).tries >= TRIES


def _passed_over(folder: Path, job: Job) -> bool:
    failure = read_failure(folder)
    if failure.tries >= TRIES:
        say(f"{job.title}: failed {failure.tries} times (remove {folder / FAILED} to try again): {failure.why}")
    return settled(folder)


def _finished(folder: Path, outcome: run.Outcome, todo: dict[Path, Job]) -> None:
    (folder / FAILED).unlink(missing_ok=True)
    result = outcome.result
    if result and outcome.fresh:
        done = sum((each / results.FILE_NAME).exists() for each in todo)
        told = f"{result.split} {result.scorecard.accuracy:.2%}, {human_seconds(result.seconds)}"
        say(f"[{done}/{len(todo)}] {todo[folder].title}: {told}")


def read_failure(folder: Path) -> Failure:
    """How often the run in `folder` has failed, and why the last time."""
    try:
        return msgspec.json.decode((folder / FAILED).read_bytes(), type=Failure)
    except (OSError, msgspec.DecodeError):
        return Failure()


def _note_failure(folder: Path, job: Job, error: Exception) -> None:
    lines = str(error).splitlines() or [""]
    why = lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"
    tries = read_failure(folder).tries + 1
    atomic_write(folder / FAILED, msgspec.json.encode(Failure(tries, why)))
    if tries < TRIES:
        say(f"{job.title}: failed, to be tried again after the others: {why}")


# --- what it came to ---------------------------------------------------------------------------------------


def gather(
    name: str, study: Study, cells: Sequence[Cell], out: str | Path, pilot: str = "", flags: Sequence[str] = ()
) -> Sheet:
    """The sheet of a study, with whatever its runs have come to so far."""
    labels = [row.label for row in study.rows]
    lines = []
    for row in study.rows:
        mine = [cell for cell in cells if cell.row is row]
        lines.append(
            Line(
                label=row.label,
                recipe=mine[0].named.name,
                settings=row.set,
                published=row.published,
                source=row.source,
                assumed=row.assumed,
                note=row.note,
                params=mine[0].weights.params,
                macs=mine[0].weights.macs,
                over_budget=plan.over_budget(study, mine[0]),
                runs=tuple(_run(cell, folder_of(cell, out)) for cell in mine),
            )
        )
    return Sheet(
        name=_stem(name),
        command=shlex.join(["weightclass", "study", name, *flags]),
        title=study.title,
        about=study.about,
        heading=study.heading,
        budget=study.budget,
        pilot=pilot,
        compare=labels.index(study.compare) if study.compare else 0,
        accuracy_figure=study.accuracy_figure,
        loss_figure=study.loss_figure,
        lines=tuple(lines),
    )


def _stem(name: str) -> str:
    return safe_name(Path(name).stem)


def _run(cell: Cell, folder: Path) -> Run:
    result = results.read(folder)
    return Run(
        seed=cell.seed,
        command=recipe.reproduce(cell.named),
        folder=folder.name,
        result=result,
        curve=tuple(read_jsonl(folder / "metrics.jsonl")),
        failure="" if result else read_failure(folder).why,
    )


def _write(told: Sheet, out: str | Path) -> Path:
    """Sheet, tables and figures of a study into its folder."""
    marks = safe_name(f"{told.stem} {told.pilot}".strip())
    if len(marks) == 80:  # cut, and so perhaps another pilot's too
        marks = f"{marks[:71]}-{hashlib.sha256(told.pilot.encode()).hexdigest()[:8]}"
    folder = Path(out) / "studies" / marks
    sheet.write(told, folder)
    table.save(told, folder)
    figure.save(told, folder)
    return folder
