"""Figures: written for what has numbers, bands where the seeds are, no name upon another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.reference.pictures import read
from tests.reference.sheets import run, sheet
from weightclass.evaluation.page import page
from weightclass.study import figure
from weightclass.study.sheet import Run, Sheet

PILOT = "10 epochs, 10,000 images, width 1/8"
ALL = [f"table4-{what}" for what in ("accuracy", "loss", "params", "pflops")]
CELLS = [(row, seed) for row in range(3) for seed in range(2)]
replace = msgspec.structs.replace


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures that are saved, by the last word of their file's name; the files stay empty, which is quicker."""
    figures: dict[str, Figure] = {}

    @contextmanager
    def kept(path: Path, *size: Any) -> Iterator[Figure]:
        with page(path, *size) as one:
            yield one
        figures[path.stem.rpartition("-")[2]] = one

    monkeypatch.setattr(figure, "page", kept)
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    return figures


def with_runs(one: Sheet, row: int, *runs: Run) -> Sheet:
    lines = list(one.lines)
    lines[row] = replace(lines[row], runs=runs)
    return replace(one, lines=tuple(lines))


def words(one: Figure) -> str:
    return "\n".join(text.get_text() for text in one.findobj(Text) if isinstance(text, Text))


def bands(one: Figure) -> list[np.ndarray]:
    """[N, 2] of the corners of each."""
    return [np.asarray(c.get_paths()[0].vertices) for c in one.axes[0].collections if isinstance(c, PolyCollection)]


def test_four_pictures(tmp_path: Path) -> None:
    paths = figure.save(sheet(2), tmp_path)
    assert [path.stem for path in paths] == ALL and sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths:
        high, wide, _ = read(path).shape
        assert (high, wide) == (842, 1750)


def test_they_say_what_they_show(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    figure.save(sheet(waiting=[(1, 0), (1, 1)]), tmp_path)
    for one in drawn.values():
        assert "SGD 0\n" in words(one) and "Mean of 2 seeds" in words(one) and "Nothing yet of: SGD 1." in words(one)
    assert "Figure 4: optimizer vs accuracy" in words(drawn["accuracy"])
    assert "Figure 5: optimizer vs loss" in words(drawn["loss"])
    assert drawn["accuracy"].axes[0].get_ylabel() == "test accuracy, % (errors on a log scale)"
    assert not any("PILOT" in words(one) for one in drawn.values())


def test_validation_is_called_so(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    bare = with_runs(
        sheet(1, 1, loss_figure="Figure 5: Test Loss"), 0, replace(run(0, 0, split="validation"), result=None)
    )
    figure.save(bare, tmp_path)
    assert drawn["loss"].axes[0].get_ylabel() == "validation loss (on a log scale)"
    assert "Figure 5: Validation Loss" in words(drawn["loss"])
    assert "One seed a row." in words(drawn["loss"]) and "watched" not in words(drawn["loss"])


@pytest.mark.usefixtures("drawn")
def test_files_only_for_what_has_numbers(tmp_path: Path) -> None:
    assert figure.save(sheet(waiting=CELLS), tmp_path) == figure.save(sheet(0), tmp_path) == []
    assert [path.stem for path in figure.save(sheet(failed=CELLS), tmp_path)] == ALL[:2]
    bare = with_runs(sheet(1), 0, replace(run(0, 0), curve=()))
    assert [path.stem for path in figure.save(bare, tmp_path)] == ALL[2:]


def test_the_band_holds_the_seeds_and_the_line_their_mean(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    one = sheet(1, 3)
    figure.save(one, tmp_path)
    seeds = np.array([[100 - 100 * record["test_accuracy"] for record in run.curve] for run in one.lines[0].runs])
    [band] = bands(drawn["accuracy"])
    for epoch in range(1, 11):
        at = band[band[:, 0] == epoch, 1]
        assert (at.min(), at.max()) == pytest.approx((seeds[:, epoch - 1].min(), seeds[:, epoch - 1].max()))
    line = drawn["accuracy"].axes[0].lines[0]
    assert np.allclose(np.array(line.get_data(), float), [np.arange(1, 11), seeds.mean(0)])
    assert f"SGD 0\n{100 - seeds[:, -1].mean():.2f} %" in words(drawn["accuracy"])


def test_a_curve_is_of_finished_runs_and_of_epochs_that_all_have() -> None:
    whole, cut = run(0, 0), run(0, 1)
    records = tuple(r | {"test_loss": None if r["epoch"] > 6 else 1.0} for r in cut.curve)
    cut = replace(cut, curve=records)

    def curve(*runs: Run) -> tuple[list[int], tuple[int, ...]] | None:
        found = figure.curves(with_runs(sheet(1), 0, *runs), "loss").get(0)
        return found and (found[0].tolist(), found[1].shape)

    assert curve(whole, cut) == (list(range(1, 7)), (2, 6))
    assert curve(whole, replace(cut, result=None)) == (list(range(1, 11)), (1, 10))
    assert curve(replace(whole, curve=({"epoch": 1, "test_loss": math.nan}, {"epoch": 2}))) is None


def test_perfect_diverged_and_short_rows_share_an_axis(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    def flat(accuracy: float, epochs: int) -> Run:
        records = ({"epoch": e, "test_loss": 5 * (1 - accuracy), "test_accuracy": accuracy} for e in range(1, epochs))
        return replace(run(0, 0), curve=tuple(records))

    figure.save(with_runs(with_runs(sheet(2, 1), 0, flat(1, 31)), 1, flat(0.1, 2)), tmp_path)
    assert drawn["accuracy"].axes[0].get_xlim() == (1, 30)
    assert "100.00 %" in words(drawn["accuracy"]) and "\n10.00 %" in words(drawn["accuracy"])
    low, high = sorted(drawn["loss"].axes[0].get_ylim())
    assert low < 0.01 and 4.5 < high < 15


def test_a_crowded_pilot_is_called_so_and_no_name_lies_upon_another(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    labels = [f"{i}, SGD (momentum) + CosineAnnealingLR" * 2 for i in range(9)]
    paths = figure.save(sheet(9, 2, PILOT, n=1000, labels=labels, over=(3, 5)), tmp_path)
    assert all(path.stem.startswith("table4-PILOT-") for path in paths) and len(drawn) == 4
    for what, one in drawn.items():
        assert f"PILOT, {PILOT}: " in words(one)
        texts = [*one.axes[0].texts, *one.texts]
        assert len(texts) >= (20 if what in ("params", "pflops") else 11)
        boxes = [text.get_window_extent() for text in texts]
        for (a, first), (b, second) in combinations(zip(texts, boxes, strict=True), 2):
            assert not first.overlaps(second), f"{what}: {a.get_text()!r} and {b.get_text()!r}"
        assert all(box.x0 >= 0 and box.x1 <= one.bbox.x1 and box.y0 >= 0 for box in boxes)
