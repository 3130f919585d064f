"""The Pareto front by its definition: every trial against every other."""

from __future__ import annotations

from collections.abc import Sequence

from weightclass.search.sheet import Row


def beaten(row: Row, other: Row, cost: str) -> bool:
    """Whether `other` is at least as good in accuracy and cost, and better in one."""
    assert row.accuracy is not None and other.accuracy is not None
    better, cheaper = other.accuracy - row.accuracy, getattr(row, cost) - getattr(other, cost)
    return better >= 0 and cheaper >= 0 and (better > 0 or cheaper > 0)


def front(rows: Sequence[Row], cost: str) -> set[int]:
    """Numbers of the finished trials, their `cost` known, that no other of them beats."""
    known = [row for row in rows if row.state == "done" and getattr(row, cost) is not None]
    return {row.number for row in known if not any(beaten(row, other, cost) for other in known)}
