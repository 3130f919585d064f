"""The scorecard against plain loops and scikit-learn, Wilson's interval against scipy and its own equation."""

from __future__ import annotations

import io
import math

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from tests.reference import plain_metrics as plain
from weightclass.errors import UserError
from weightclass.evaluation.metrics import Scorecard, scorecard, table, wilson


@st.composite
def judged(draw: st.DrawFn) -> tuple[list[list[float]], list[int], int]:
    """Logits on a coarse grid (so that ties happen), labels, and the number of classes."""
    classes, n = draw(st.integers(2, 8)), draw(st.integers(1, 12))
    row = st.lists(st.integers(-40, 40).map(lambda x: x / 4), min_size=classes, max_size=classes)
    logits = draw(st.lists(row, min_size=n, max_size=n))
    return logits, draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)), classes


def names(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


def made_up(n: int, classes: int, every: int = 5) -> tuple[Tensor, Tensor]:
    """Logits and labels where each image whose number `every` divides is taken for the next class."""
    labels = torch.arange(n) % classes
    said = torch.where(torch.arange(n) % every == 0, (labels + 1) % classes, labels)
    return 5.0 * torch.nn.functional.one_hot(said, classes), labels


@settings(max_examples=40)
@given(judged())
def test_equals_plain_loops(case: tuple[list[list[float]], list[int], int]) -> None:
    logits, labels, classes = case
    card = scorecard(torch.tensor(logits), torch.tensor(labels), names(classes))
    confusion = plain.confusion(logits, labels, classes)
    assert card.confusion == confusion
    assert card.n == len(labels)
    assert card.correct == sum(confusion[i][i] for i in range(classes))
    assert card.accuracy == card.correct / card.n
    assert card.interval == wilson(card.correct, card.n)
    assert card.nll == pytest.approx(plain.nll(logits, labels), rel=1e-9, abs=1e-9)
    assert card.top5 == (pytest.approx(plain.top(5, logits, labels)) if classes > 5 else None)
    for i, score in enumerate(card.per_class.values()):
        assert score.n == sum(confusion[i])
        assert (score.precision, score.recall, score.f1) == plain.class_score(logits, labels, i)
    bins = plain.calibration(logits, labels, 15)
    for part, expected in zip(card.bins, bins, strict=True):
        assert (part.n, part.confidence or 0, part.accuracy or 0) == pytest.approx(expected)
    assert [part.n == 0 for part in card.bins] == [part.confidence is part.accuracy is None for part in card.bins]
    assert card.ece == pytest.approx(sum(n * abs(sure - right) for n, sure, right in bins) / len(labels))


@settings(max_examples=40)
@given(judged())
def test_macro_and_confused_follow_from_the_rest(case: tuple[list[list[float]], list[int], int]) -> None:
    logits, labels, classes = case
    card = scorecard(torch.tensor(logits), torch.tensor(labels), names(classes))
    present = [plain.class_score(logits, labels, i) for i in range(classes) if i in labels]
    for i, mean in enumerate((card.macro.precision, card.macro.recall, card.macro.f1)):
        defined = [scores[i] for scores in present if scores[i] is not None]
        assert mean == (pytest.approx(sum(defined) / len(defined)) if defined else None)
    pairs = card.confused(most=classes**2)
    assert sum(pair.count for pair in pairs) == card.n - card.correct
    assert pairs == sorted(pairs, key=lambda pair: (-pair.count, pair.true, pair.predicted))
    assert all(pair.count == card.confusion[pair.true][pair.predicted] > 0 for pair in pairs)
    assert all(pair.n == labels.count(pair.true) and pair.true != pair.predicted for pair in pairs)
    assert card.confused(2) == pairs[:2]


def test_equals_scikit_learn() -> None:
    from sklearn.metrics import (
        accuracy_score,
        log_loss,
        precision_recall_fscore_support,
        top_k_accuracy_score,
    )

    logits, labels = torch.sin(torch.arange(700.0).reshape(100, 7) ** 1.5), torch.arange(100) % 6  # none of class 6
    said = torch.where(logits.argmax(1) == 2, 6, logits.argmax(1))  # class 2 is never predicted
    logits = logits + 2 * torch.nn.functional.one_hot(said, 7)
    card = scorecard(logits, labels, names(7))
    assert card.accuracy == accuracy_score(labels, said)
    assert card.nll == pytest.approx(log_loss(labels, logits.double().softmax(1).numpy(), labels=range(7)))
    assert card.top5 == top_k_accuracy_score(labels, logits, k=5, labels=range(7))
    theirs = precision_recall_fscore_support(labels, said, labels=range(7), zero_division=math.nan)
    for score, *expected in zip(card.per_class.values(), *theirs, strict=True):
        found = [math.nan if x is None else x for x in (score.precision, score.recall, score.f1, score.n)]
        assert found == pytest.approx(expected, nan_ok=True)
    assert card.per_class["class 2"].precision is card.per_class["class 6"].recall is None
    macro = precision_recall_fscore_support(labels, said, labels=range(6), zero_division=math.nan, average="macro")
    assert (card.macro.precision, card.macro.recall, card.macro.f1) == pytest.approx(macro[:3])


def test_confidence_on_a_bin_s_edge_falls_below_it() -> None:
    """Equal logits of 3 and of 5 classes: confidences 5/15 and 3/15, the upper ends of bins 4 and 2."""
    for classes, place in ((3, 4), (5, 2)):
        card = scorecard(torch.zeros(1, classes), torch.tensor([0]), names(classes))
        assert [part.n for part in card.bins].index(1) == place
    assert scorecard(torch.tensor([[99.0, 0]]), torch.tensor([0]), names(2)).bins[14].n == 1


def test_half_precision_and_huge_logits() -> None:
    logits, labels = made_up(40, 4)
    assert scorecard(logits.bfloat16(), labels, names(4)) == scorecard(logits, labels, names(4))
    assert math.isfinite(scorecard(torch.tensor([[3e38, -3e38]]), torch.tensor([1]), names(2)).nll)


@pytest.mark.parametrize(
    ("correct", "n", "lo", "hi"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (1, 1, 0.2065, 1)]
)
def test_wilson_known_values(correct: int, n: int, lo: float, hi: float) -> None:
    assert wilson(correct, n) == pytest.approx((lo, hi), abs=5e-5)


@given(st.integers(1, 20_000), st.floats(0, 1), st.sampled_from([1.0, 1.96, 3.0]))
def test_wilson_solves_its_equation(n: int, share: float, z: float) -> None:
    correct = round(share * n)
    interval = wilson(correct, n, z)
    assert interval == pytest.approx(plain.wilson(correct, n, z), abs=1e-9)
    assert 0 <= interval.lo <= correct / n <= interval.hi <= 1


def test_wilson_equals_scipy() -> None:
    from scipy.stats import binomtest, norm

    theirs = binomtest(9701, 10_000).proportion_ci(method="wilson")
    assert wilson(9701, 10_000, float(norm.ppf(0.975))) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_wilson_knows_nothing_of_no_images() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_json_round_trip() -> None:
    card = scorecard(torch.eye(3)[:2], torch.tensor([0, 1]), ["a", "b", "never seen"])
    text = msgspec.json.encode(card)
    assert b'"never seen":{"n":0,"precision":null,"recall":null,"f1":null}' in text
    assert msgspec.json.decode(text, type=Scorecard) == card
    assert card.classes == ["a", "b", "never seen"]


@pytest.mark.parametrize(
    ("logits", "labels", "classes", "message"),
    [
        (torch.tensor([[0.0, 1], [math.nan, 0], [math.inf, 0]]), [0, 1, 1], ["a", "b"], "2 of 3 images .* image 1 the"),
        (torch.zeros(2, 3), [0, 1], ["a", "b"], r"logits of shape \[2, 3\] do not fit 2 labels from 0 to 1 of 2 c"),
        (torch.zeros(2, 2), [0, 1, 1], ["a", "b"], "do not fit 3 labels from 0 to 1 of 2 classes"),
        (torch.zeros(2, 2), [0, 2], ["a", "b"], "do not fit 2 labels from 0 to 2 of 2 classes"),
        (torch.zeros(2, 2), [-1, 0], ["a", "b"], "do not fit 2 labels from -1 to 0"),
        (torch.zeros(0, 2), [], ["a", "b"], "at least one image"),
        (torch.zeros(1, 2), [0], ["a", "a"], "share a name"),
    ],
)
def test_what_does_not_fit_is_told(logits: Tensor, labels: list[int], classes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scorecard(logits, torch.tensor(labels, dtype=torch.int64), classes)


def shown(card: Scorecard, width: int = 80, views: dict[str, Scorecard] | None = None) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table(card, views))
    return console.export_text()


def test_table_of_few_classes() -> None:
    logits, labels = made_up(50, 4)
    text = shown(scorecard(logits, labels, ["plane", "[red]cat[/]", "dog", "frog"]))
    assert "80.00 % accuracy" in text and "95 % interval 66.96 % to 88.76 %" in text
    assert "40 of 50 images right" in text and "nll 1.0200   ECE 18.02 %   macro F1 80.06 %" in text
    assert "top-5" not in text and "test-time" not in text
    assert "[red]cat[/] taken for dog: 3 of 13" in text
    assert text.count("taken for") == 4 and text.count("█") > 30


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_table_fits_80_columns(classes: int) -> None:
    logits, labels = made_up(10_000, classes, every=7)
    card = scorecard(logits, labels, [f"a class with a rather long name, {i}" for i in range(classes)])
    text = shown(card, 80, {"flip+shift": card})
    lines = [line for line in text.splitlines() if "macro average" in line]
    assert "10,000" in lines[0] and lines[0].count("%") == 3
    assert "…" in text and text.count("F1") == 3 and ("top-5" in text) == (classes > 5)
    assert not any(line.strip() in ("%", "…") for line in text.splitlines()), "a cell is broken over two lines"


def test_table_lists_classes_in_order() -> None:
    card = scorecard(*made_up(200, 20), names(20))
    rows = [line.split()[1] for line in shown(card).splitlines() if line.strip().startswith("class ") and "%" in line]
    assert rows == [str(i) for i in range(20)]


def test_table_of_many_classes_shows_the_worst_ten() -> None:
    logits, labels = made_up(3000, 1000, every=7)
    listed = [line for line in shown(scorecard(logits, labels, names(1000))).splitlines() if line.count("%") == 3][1:]
    assert "worst 10 of 1000 classes" in shown(scorecard(logits, labels, names(1000)))
    assert len(listed) == 11 and "macro average" in listed[-1]
    assert all("66.67 %" in line for line in listed[:-1])


def test_table_shows_what_is_undefined_as_a_dash() -> None:
    """Class b is never predicted, class d has no images."""
    card = scorecard(torch.eye(4)[[0, 0, 2, 3]], torch.tensor([0, 1, 2, 2]), list("abcd"))
    rows = {line.split()[0]: line.split()[1:6] for line in shown(card).splitlines() if line[1:2] in tuple("abcd")}
    assert rows["b"] == ["1", "-", "0.00", "%", "0.00"] and "d" not in rows


def test_views_stand_apart() -> None:
    labels = torch.arange(4) % 2
    plain = scorecard(torch.eye(2)[[0, 1, 1, 1]], labels, ["a", "b"])
    better = scorecard(torch.eye(2)[labels], labels, ["a", "b"])
    text = shown(plain, views={"flip": better})
    before, after = text.split("with test-time views")
    assert "75.00 % accuracy" in before and "100.00 %" not in before.splitlines()[0]
    assert "not the accuracy above" in after and "flip" in after and "100.00 %" in after and "+25.00" in after


@pytest.mark.parametrize("width", [30, 60])
def test_table_without_mistakes_fits_a_narrow_terminal(width: int) -> None:
    text = shown(scorecard(torch.eye(2), torch.tensor([0, 1]), ["a" * 50, "empty"]), width)
    assert "100.00 %" in text and "taken for" not in text
    assert max(map(len, text.splitlines())) <= width
