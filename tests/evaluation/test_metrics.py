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
    classes, n = draw(st.integers(2, 6)), draw(st.integers(1, 12))
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
    for i, score in enumerate(card.per_class.values()):
        assert score.n == sum(confusion[i])
        assert score.accuracy == (confusion[i][i] / score.n if score.n else None)


def test_equals_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, log_loss, recall_score

    logits, labels = torch.sin(torch.arange(600.0).reshape(100, 6) ** 1.5), torch.arange(100) % 6
    card = scorecard(logits, labels, names(6))
    assert card.accuracy == accuracy_score(labels, logits.argmax(1))
    assert card.nll == pytest.approx(log_loss(labels, logits.double().softmax(1).numpy()))
    for i, score in enumerate(card.per_class.values()):
        assert score.accuracy == recall_score(labels == i, logits.argmax(1) == i)


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
    card = scorecard(torch.eye(3), torch.tensor([0, 1, 1]), ["a", "b", "never seen"])
    text = msgspec.json.encode(card)
    assert b'"never seen":{"accuracy":null,"n":0}' in text
    assert msgspec.json.decode(text, type=Scorecard) == card
    assert card.classes == ["a", "b", "never seen"]


@pytest.mark.parametrize(
    ("logits", "labels", "classes", "message"),
    [
        (torch.tensor([[0.0, 1], [math.nan, 0], [math.inf, 0]]), [0, 1, 1], ["a", "b"], "2 of 3 images .* image 1 the"),
        (torch.zeros(2, 3), [0, 1], ["a", "b"], r"logits of shape \[2, 3\] do not fit 2 labels of 2 classes"),
        (torch.zeros(2, 2), [0, 1, 1], ["a", "b"], "do not fit 3 labels"),
        (torch.zeros(2, 2), [0, 2], ["a", "b"], "labels run from 0 to 2: expected 0 to 1"),
        (torch.zeros(2, 2), [-1, 0], ["a", "b"], "labels run from -1 to 0"),
        (torch.zeros(0, 2), [], ["a", "b"], "at least one image"),
        (torch.zeros(1, 2), [0], ["a", "a"], "share a name"),
    ],
)
def test_what_does_not_fit_is_told(logits: Tensor, labels: list[int], classes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        scorecard(logits, torch.tensor(labels, dtype=torch.int64), classes)


def shown(card: Scorecard, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table(card))
    return console.export_text()


def test_table_of_few_classes() -> None:
    logits, labels = made_up(50, 4)
    text = shown(scorecard(logits, labels, ["plane", "[red]cat[/]", "dog", "frog"]))
    assert "80.00 % accuracy" in text and "95 % interval 66.96 % to 88.76 %" in text
    assert "40 of 50 images right, nll" in text
    assert "[red]cat[/] taken for dog: 3 of 13" in text
    assert text.count("taken for") == 3 and text.count("█") > 30


def test_table_lists_classes_in_order() -> None:
    card = scorecard(*made_up(200, 20), names(20))
    rows = [line.split()[1] for line in shown(card).splitlines() if line.strip().startswith("class ") and "%" in line]
    assert rows == [str(i) for i in range(20)]


def test_table_of_many_classes_shows_the_worst_ten() -> None:
    logits, labels = made_up(3000, 1000, every=7)
    text = shown(scorecard(logits, labels, names(1000)))
    listed = [line for line in text.splitlines() if "%" in line][1:]
    assert "worst 10 of 1000 classes" in text and len(listed) == 10
    assert all("66.67 %" in line for line in listed)


@pytest.mark.parametrize("width", [30, 60])
def test_table_without_mistakes_fits_a_narrow_terminal(width: int) -> None:
    text = shown(scorecard(torch.eye(2), torch.tensor([0, 1]), ["a" * 50, "empty"]), width)
    assert "100.00 %" in text and "taken for" not in text
    assert max(map(len, text.splitlines())) <= width
