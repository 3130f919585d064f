"""A search's sheet: its best, its fronts against their definition, and its file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import plain_front
from tests.reference.searches import final, in_full, row, sheet
from weightclass.errors import UserError
from weightclass.search import sheet as sheets
from weightclass.search.sheet import COSTS, Row

STATES = st.sampled_from(["done", "done", "done", "pruned", "failed", "open"])
FEW = st.integers(1, 5)  # few values, so that many are equal


@st.composite
def rows(draw: st.DrawFn) -> tuple[Row, ...]:
    def one(number: int) -> Row:
        state, ms = draw(STATES), draw(st.none() | FEW)
        return row(number, state, params=draw(FEW), macs=draw(FEW), ms=ms, accuracy=draw(st.integers(0, 4)) / 4)

    return tuple(one(number) for number in range(draw(st.integers(0, 9))))


@settings(max_examples=60)
@given(rows(), st.sampled_from(COSTS))
def test_a_front_is_what_nothing_beats(some: tuple[Row, ...], cost: str) -> None:
    front = sheet(rows=some).front(cost)
    assert {each.number for each in front} == plain_front.front(some, cost)
    assert len({each.number for each in front}) == len(front)
    points = [(getattr(each, cost), each.accuracy) for each in front]
    assert points == sorted(points)


@settings(max_examples=30)
@given(rows())
def test_the_best_is_first_and_on_the_front_of_macs(some: tuple[Row, ...]) -> None:
    one = sheet(rows=some)
    assert [each.accuracy for each in one.done] == sorted((each.accuracy or 0 for each in one.done), reverse=True)
    assert (one.best is None) == (not one.done)
    if one.best:
        assert one.best == one.front("macs")[-1] or one.front("macs")[-1].accuracy == one.best.accuracy
        assert one.best.accuracy == max(each.accuracy or 0 for each in some if each.state == "done")


def test_a_training_in_full_decides_and_leaves_the_fronts_alone() -> None:
    plain = sheet()
    told = in_full(plain, 0, 4)
    assert told.best == told.rows[4] != plain.best
    assert told.base == told.rows[0]
    for cost in COSTS:
        assert [each.number for each in told.front(cost)] == [each.number for each in plain.front(cost)]


def test_of_equal_trials_the_cheaper_one_is_best() -> None:
    some = (
        row(0, accuracy=0.6),
        row(1, accuracy=0.7, macs=9),
        row(2, accuracy=0.7, macs=8),
        row(3, accuracy=0.7, macs=8),
    )
    one = sheet(rows=some)
    assert [each.number for each in one.done] == [2, 3, 1, 0]
    assert one.base == some[0]
    assert sheet(rows=(row(0, "failed"), *some[1:])).base is None


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    one = sheet(3, 2, 1, opened=1, final=final(), final_folder="small-cpu-found-01234567")
    sheets.write(one, tmp_path)
    assert sheets.read(tmp_path) == one
    assert (tmp_path / "search.json").read_text(encoding="utf-8").count("\n") > 100  # for people, too


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"name": 3}'])
def test_a_foreign_file_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "search.json").write_bytes(content)
    with pytest.raises(UserError, match=r"search\.json: not a search of this version") as error:
        sheets.read(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        sheets.read(tmp_path / "nowhere")


def test_a_state_is_one_of_four() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(row(1)).replace(b'"done"', b'"lost"'), type=Row)
