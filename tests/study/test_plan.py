"""A study's file becomes runs: settings joined, pilots cut, mistakes named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightclass import recipe
from weightclass.config import build, parse_toml
from weightclass.errors import UserError
from weightclass.study import plan
from weightclass.study.plan import Cell, Short, Study

TEXT = """
title = "Widths"
base = "quickstart"
set = ["train.epochs=40", "schedule.name=step", "schedule.step_size=10", "schedule.warmup=2"]
budget = "20k"
seeds = [3, 1]
compare = "half"

[[rows]]
label = "whole"

[[rows]]
label = "half"
set = ["model.channels=8,16,32", "train.epochs=20"]
"""


def study(text: str = TEXT) -> Study:
    return build(parse_toml(text, "s.toml"), Study, "study s.toml")


def cells(*more: str, short: Short = plan.FULL) -> list[Cell]:
    return plan.cells(study(), study().seeds, short, more)


def test_the_rows_of_one_seed_come_before_the_next_seed() -> None:
    assert [(cell.seed, cell.row.label) for cell in cells()] == [(3, "whole"), (3, "half"), (1, "whole"), (1, "half")]


def test_a_row_s_setting_replaces_the_study_s_and_the_user_s_replaces_both() -> None:
    assert [cell.named.recipe.train.epochs for cell in cells()[:2]] == [40, 20]
    assert [cell.named.recipe.train.epochs for cell in cells("train.epochs=7")[:2]] == [7, 7]
    assert [cell.named.recipe.train.seed for cell in cells("train.epochs=7")] == [3, 3, 1, 1]


@pytest.mark.parametrize(
    ("settings", "short", "message"),
    [
        (["train.seed=9"], plan.FULL, "row 'whole': train.seed is not a study's to set"),
        (["train.epochs=7", "train.epochs=8"], plan.FULL, "row 'whole': override 'train.epochs=8': .* set twice"),
        ([], Short(epochs=30), "row 'half': --epochs 30: its full training has only 20"),
    ],
)
def test_nothing_is_silently_overruled(settings: list[str], short: Short, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cells(*settings, short=short)


def test_a_seed_counts_once() -> None:
    with pytest.raises(UserError, match="seeds 1, 1: one stands there twice"):
        plan.cells(study(), [1, 1])


def test_the_command_of_a_run_makes_the_same_run() -> None:
    for cell in cells("augment.ops=crop(1),rotate(3)", short=Short(epochs=4, subset=700, width=1 / 2)):
        assert recipe.load(cell.named.source, *cell.named.overrides).recipe == cell.named.recipe


def test_a_full_run_draws_test_curves_and_a_pilot_leaves_the_test_set_alone() -> None:
    full, pilot = cells()[0].named.recipe.data, cells(short=Short(epochs=4))[0].named.recipe.data
    assert (full.watch_test, full.validation) == (True, 0)
    assert (pilot.watch_test, pilot.validation) == (False, 0.1)
    own = cells("data.validation=100", short=Short(epochs=4))[0].named.recipe.data
    assert (own.watch_test, own.validation) == (False, 100)


def test_a_folder_that_brings_validation_images_is_judged_on_those(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan.sources, "brings_validation", lambda _: True)
    for short in (Short(), Short(epochs=4)):
        data = cells(short=short)[0].named.recipe.data
        assert (data.watch_test, data.validation) == (False, 0)


def test_a_pilot_shrinks_with_its_epochs_what_counts_epochs() -> None:
    whole, half = (cell.named.recipe for cell in cells(short=Short(epochs=5))[:2])
    assert (whole.train.epochs, whole.schedule.step_size, whole.schedule.warmup) == (5, 1, 0.25)  # type: ignore[union-attr]
    assert (half.train.epochs, half.schedule.step_size, half.schedule.warmup) == (5, 2, 0.5)  # type: ignore[union-attr]


def test_a_pilot_averages_the_same_share_of_its_steps() -> None:
    [pilot] = {cell.named.recipe.train.ema for cell in cells("train.ema=0.998", short=Short(epochs=5))[:1]}
    assert pilot**5 == pytest.approx(0.998**40, rel=1e-4)
    assert cells("train.ema=0.998")[0].named.recipe.train.ema == 0.998


def test_a_pilot_is_narrower_and_told_so() -> None:
    short = Short(epochs=5, subset=1200, width=1 / 4)
    assert [cell.named.recipe.model.channels for cell in cells(short=short)[:2]] == [(4, 8, 16), (2, 4, 8)]  # type: ignore[union-attr]
    assert short.parts() == ["5 epochs", "1,200 images", "width 1/4"]
    assert short.flags() == ["--epochs", "5", "--subset", "1200", "--width", "0.25"]
    assert plan.FULL.parts() == plan.FULL.flags() == []


def test_over_budget_is_marked_by_the_whole_network_and_trained_all_the_same() -> None:
    marks = [plan.over_budget(study(), cell) for cell in cells(short=Short(width=1 / 4))[:2]]
    assert marks == [True, False]  # 77,754 and 19,810 parameters before the channels are cut
    (over, _) = plan.cells(study(TEXT + '\n[[rows]]\nlabel = "x"\n'), [0], plan.FULL, ["budget.params=30k"])[:2]
    assert over.named.recipe.budget.params == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('title = "t"', "study {}: it has no [[rows]]"),
        ('title = "t"\n[[rows]]\nlabel = "a"\n[[rows]]\nlabel = "a"', "study {}: two rows have the same label"),
        ('title = "t"\ncompare = "b"\n[[rows]]\nlabel = "bb"', "study {}: compare = 'b': did you mean bb?"),
        ('title = "t"\nrow = 3', "study {}: unknown key row: did you mean rows?"),
        ('title = "t"\n[[rows]]\nlabl = "a"', "study {}: unknown key rows.0.labl: did you mean label?"),
        ('title = "t"\nseeds = []', "study {}: seeds = []: expected list of length >= 1"),
        ('title = "t"\nbudget = "lots"', "study {}: budget: 'lots' is not a size"),
        ("title =", "study {}: not valid TOML: "),
    ],
)
def test_mistakes_in_a_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        plan.load(str(path))
    assert str(error.value).startswith(message.format(path))


def test_mistakes_in_a_name_and_in_a_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study is called 'tabel1': did you mean table1"):
        plan.load("tabel1")
    with pytest.raises(UserError, match=r"study .*none.toml: cannot be read: No such file"):
        plan.load(str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match=r"unknown key model\.chanels"):
        plan.cells(study(TEXT.replace("model.channels=8,16,32", "model.chanels=8")), [0])


def test_a_file_that_is_called_like_a_shipped_study_would_replace_its_tables(tmp_path: Path) -> None:
    (tmp_path / "table1.toml").write_text(TEXT, encoding="utf-8")
    with pytest.raises(UserError, match="table1 comes with the package"):
        plan.load(str(tmp_path / "table1.toml"))


def test_every_study_is_listed_with_its_commands() -> None:
    assert plan.contents().row_count == len(plan.names()) > 0
    one = plan.load("table2")
    assert plan.listing(one, plan.cells(one, one.seeds)).row_count == len(one.rows)
