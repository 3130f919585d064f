"""The statistics of a study's rows: what their seeds came to, beside the compared row and beside what was published."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np

from weightclass import __version__
from weightclass.study.sheet import Line, Sheet


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One row. Accuracies in %, differences in points, training minutes and compute per run; None: not known."""

    label: str
    params: int
    macs: int
    over_budget: bool
    seeds: int
    finished: int
    split: str
    images: int
    finished_seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    mean: float | None
    std: float | None
    """Of the sample (n - 1)."""
    error: float | None
    """Half of the widest 95 % interval of a run's accuracy: the luck of its images."""
    difference: float | None
    """To the compared row: the mean over the seeds that both have finished."""
    p: float | None
    """Of the paired t-test over these seeds; None where they do not vary."""
    published: float | None
    gap: float | None
    """To the published accuracy, of full runs read on the test set."""
    pflops: float | None
    minutes: float | None
    computed_on: str
    notes: tuple[str, ...]
    """Its footnotes: where it was published, assumed settings, the note, failures, other versions of this package, a
    row that is the same runs, and where it was computed if others were elsewhere."""


def figures(sheet: Sheet) -> list[Figures]:
    """The statistics of each row."""
    return [_figures(line, sheet) for line in sheet.lines]


def _figures(line: Line, sheet: Sheet) -> Figures:
    results = line.results
    accuracies = [100 * one.scorecard.correct / one.scorecard.n for one in results]
    mean = _mean(accuracies)
    base = sheet.lines[sheet.compare]
    difference, p = (None, None) if line is base else _compared(line, base)
    return Figures(
        label=" ".join(line.label.split()),
        params=line.params,
        macs=line.macs,
        over_budget=line.over_budget,
        seeds=len(line.runs),
        finished=len(results),
        split=distinct(one.split for one in results),
        images=max((one.scorecard.n for one in results), default=0),
        finished_seeds=tuple(one.seed for one in results),
        accuracies=tuple(accuracies),
        mean=mean,
        std=float(np.std(accuracies, ddof=1)) if len(results) > 1 else None,
        error=max((50 * (one.scorecard.interval.hi - one.scorecard.interval.lo) for one in results), default=None),
        difference=difference,
        p=p,
        published=line.published,
        gap=mean - line.published if sheet.comparable and mean is not None and line.published is not None else None,
        pflops=_mean([one.train_pflops for one in results]),
        minutes=_mean([one.seconds / 60 for one in results]),
        computed_on=_computed_on(line),
        notes=tuple(" ".join(note.split()) for note in _notes(line, sheet)),
    )


def _compared(line: Line, base: Line) -> tuple[float | None, float | None]:
    """Difference and p: each seed is compared with itself, on the same split."""
    ours, theirs = ({(one.seed, one.split): one.scorecard.accuracy for one in row.results} for row in (line, base))
    points = [100 * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs]
    if len(points) < 2 or math.isclose(min(points), max(points), abs_tol=1e-9):  # equal ones: luck, not certainty
        return _mean(points), None
    from scipy.stats import ttest_1samp

    return _mean(points), float(ttest_1samp(points, 0).pvalue)  # type: ignore[attr-defined]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _computed_on(line: Line) -> str:
    """Device and precision."""
    return distinct(" ".join(one.computed_on.split(", ")[:3:2]) for one in line.results)


def _notes(line: Line, sheet: Sheet) -> Iterator[str]:
    if line.published is not None:
        yield f"published: {line.source}"
    yield from (f"assumed: {setting}" for setting in line.assumed)
    if line.note:
        yield line.note
    yield from (f"seed {run.seed} failed: {run.failure}" for run in line.runs if run.failure and not run.result)
    if versions := distinct({one.version for one in line.results} - {__version__}):
        yield f"run with version {versions}, not {__version__}"
    finished = [each for each in sheet.lines if each.results]
    if line.results and len(set(map(_computed_on, finished))) > 1:
        yield f"trained on {_computed_on(line)}"
    runs = {one.fingerprint for one in line.results}
    twin = next((each for each in finished if runs == {one.fingerprint for one in each.results}), line)
    if twin is not line:
        yield f"equal settings: the same run as {twin.label}"


def distinct(texts: Iterable[str]) -> str:
    """`float32`, or `bfloat16/float32` where they differ."""
    return "/".join(sorted(set(texts)))
