"""The ladder goes from fast to safe, and names the layers only where it comes to that."""

from __future__ import annotations

from weightclass.edge.rungs import Rung, ladder

LAYERS = ["b", "a", "d", "c", "e"]


def test_every_rung_is_safer_than_the_one_before() -> None:
    rungs = list(ladder(Rung(per_channel=False), lambda: LAYERS))
    assert rungs[:3] == [Rung(per_channel=False), Rung(), Rung(reduce_range=True)]
    assert [rung.float_layers for rung in rungs[3:]] == [
        ("b",),
        ("b", "a"),
        ("b", "a", "d", "c"),
        ("b", "a", "d", "c", "e"),
    ]
    assert all(rung.per_channel and not rung.reduce_range for rung in rungs[3:])


def test_it_begins_where_it_is_told() -> None:
    rungs = list(ladder(Rung(reduce_range=True, float_layers=("a",)), lambda: LAYERS))
    assert rungs[1] == Rung(reduce_range=True, float_layers=("a", "b"))
    assert set(rungs[-1].float_layers) == set(LAYERS)


def test_layers_are_ranked_only_when_they_are_needed() -> None:
    climbing = ladder(Rung(), lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert [next(climbing), next(climbing)] == [Rung(), Rung(reduce_range=True)]


def test_a_rung_says_what_it_is() -> None:
    assert str(Rung()) == "a scale a channel"
    rung = Rung(per_channel=False, reduce_range=True, float_layers=("a", "b"))
    assert str(rung) == "a scale a tensor, 7-bit weights, 2 more layers in float"
