"""Logits and labels to a scorecard: accuracy with its interval, likelihood, classes and confusions.

Every kind of model (float, averaged, int8, ONNX) is judged by `scorecard`, so their numbers compare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from weightclass.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

_ALL_CLASSES = 20  # the most classes that a table lists in full
_WORST_CLASSES = 10  # how many it lists of a longer list
_WORST_PAIRS = 3


class Interval(NamedTuple):
    """A confidence interval of a share in 0..1; a pair in JSON."""

    lo: float
    hi: float


class ClassScore(msgspec.Struct, frozen=True, kw_only=True):
    """One class: the share of its `n` images that is recognised, None where it has no image."""

    accuracy: float | None
    n: int


class Scorecard(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a model on one set of images; `msgspec.json.encode` writes it, `decode` reads it back."""

    n: int
    # Number of images.
    correct: int
    # How many of them have their largest logit at the label.
    accuracy: float
    # correct / n, in 0..1.
    interval: Interval
    # Wilson's 95 % interval of the accuracy.
    nll: float
    # Mean cross-entropy, natural logarithm.
    per_class: dict[str, ClassScore]
    # In the order of the labels.
    confusion: list[list[int]]
    # Counts: a row for each true class, a column for each predicted one.

    @property
    def classes(self) -> list[str]:
        return list(self.per_class)


def wilson(correct: int, n: int, z: float = 1.96) -> Interval:
    """Wilson's score interval of correct / n (JASA 22, 1927), honest near 1, where accuracies live; 0..1 for n = 0."""
    if n == 0:
        return Interval(0.0, 1.0)
    share = correct / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding may leave the ends a hair on the wrong side of 0, of 1 or of the share itself.
    return Interval(min(share, max(0.0, (middle - half) / scale)), max(share, min(1.0, (middle + half) / scale)))


def scorecard(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Scorecard:
    """Judge `logits` [N, len(classes)] by int64 `labels` [N]. Equal logits: the first class counts.

    Raises UserError where they do not fit together, or where a logit is not finite.
    """
    from sklearn.metrics import confusion_matrix

    logits, labels = logits.detach().cpu().double(), labels.detach().cpu().long()
    _check(logits, labels, classes)
    confusion = confusion_matrix(labels, logits.argmax(1), labels=range(len(classes)))
    hits, counts = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    n, correct = len(labels), sum(hits)
    return Scorecard(
        n=n,
        correct=correct,
        accuracy=correct / n,
        interval=wilson(correct, n),
        nll=F.cross_entropy(logits, labels).item(),
        per_class={
            name: ClassScore(accuracy=hit / count if count else None, n=count)
            for name, hit, count in zip(classes, hits, counts, strict=True)
        },
        confusion=confusion.tolist(),
    )


def _check(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    if len(set(classes)) < len(classes):
        raise UserError("classes: two classes share a name; give each its own")
    if labels.ndim != 1 or not len(labels):
        raise UserError(f"labels of shape {list(labels.shape)}: expected one for each image, and at least one image")
    if logits.shape != (len(labels), len(classes)):
        raise UserError(
            f"logits of shape {list(logits.shape)} do not fit {len(labels)} labels of {len(classes)} classes: "
            "judge the model on data with the classes it was trained on"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(f"labels run from {labels.min()} to {labels.max()}: expected 0 to {len(classes) - 1}")
    bad = (~torch.isfinite(logits)).any(1).nonzero().flatten()
    if len(bad):
        raise UserError(
            f"logits: {len(bad):,} of {len(labels):,} images have a NaN or infinite logit, image {bad[0]} the first: "
            "the training diverged or the exported file is broken; lower the learning rate, or export again"
        )


# --- the scorecard on a terminal ---------------------------------------------------------------------------


def table(card: Scorecard) -> RenderableType:
    """For rich's `print`: the headline, the classes (beyond 20, the worst 10) and the most confused pairs."""
    from rich.console import Group
    from rich.text import Text

    headline = Text.assemble(
        (f"{_percent(card.accuracy)} accuracy", "bold"),
        f"  95 % interval {_percent(card.interval.lo)} to {_percent(card.interval.hi)}\n",
        (f"{card.correct:,} of {card.n:,} images right, nll {card.nll:.4f}", "dim"),
    )
    return Group(headline, _class_table(card), *_confused(card))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _class_table(card: Scorecard) -> RenderableType:
    from rich import box
    from rich.bar import Bar
    from rich.table import Table
    from rich.text import Text

    # The bar shows the share of errors, longest for the worst class: bars of 97 % and 98 % accuracy would look alike.
    rows = [(1 - score.accuracy, name, score.n) for name, score in card.per_class.items() if score.accuracy is not None]
    if len(card.per_class) > _ALL_CLASSES:
        rows = sorted(rows, key=lambda row: row[0], reverse=True)[:_WORST_CLASSES]
    head = "class" if len(card.per_class) <= _ALL_CLASSES else f"worst {len(rows)} of {len(card.per_class)} classes"
    longest = max(error for error, _, _ in rows)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column(head, max_width=32, no_wrap=True, overflow="ellipsis")
    for title in ("accuracy", "images", "errors"):
        grid.add_column(title, justify="right", no_wrap=True)
    grid.add_column("")
    for error, name, n in rows:
        bar = Bar(longest or 1.0, 0.0, error, width=16, color="red")
        grid.add_row(Text(name), _percent(1 - error), f"{n:,}", f"{round(error * n):,}", bar)
    return grid


def _confused(card: Scorecard) -> list[RenderableType]:
    """A line for each of the most frequent mistakes."""
    from rich.text import Text

    names, totals = card.classes, [score.n for score in card.per_class.values()]
    pairs = [(count, i, j) for i, row in enumerate(card.confusion) for j, count in enumerate(row) if i != j and count]
    worst = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:_WORST_PAIRS]
    return [
        Text.assemble((names[i], "bold"), " taken for ", (names[j], "bold"), f": {count:,} of {totals[i]:,}")
        for count, i, j in worst
    ]
