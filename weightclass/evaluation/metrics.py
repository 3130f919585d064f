"""Logits and labels to a scorecard: accuracy with its interval, likelihood, calibration, classes and confusions.

Every kind of model (float, averaged, int8, ONNX) is judged by `scorecard`, so their numbers compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from weightclass.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_ALL_CLASSES = 20  # the most classes that a table lists in full
_WORST_CLASSES = 10  # how many it lists of a longer list
_BINS = 15  # of the confidence; as many as Guo et al. 2017


class Interval(NamedTuple):
    """A confidence interval of a share in 0..1; a pair in JSON."""

    lo: float
    hi: float


class ClassScore(msgspec.Struct, frozen=True, kw_only=True):
    """One class; what would divide by zero is None."""

    n: int  # its images
    precision: float | None  # the share of the images given this class that are of it
    recall: float | None  # the share of its images that are given this class: the class's accuracy
    f1: float | None  # the harmonic mean of the two


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """The `n` images whose confidence lies in one bin: its mean, and the share of right answers; None for n = 0."""

    n: int
    confidence: float | None
    accuracy: float | None


class Pair(NamedTuple):
    """`count` of the `n` images of class number `true` are taken for class number `predicted`."""

    true: int
    predicted: int
    count: int
    n: int


class Scorecard(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a model on one set of images; `msgspec.json.encode` writes it, `decode` reads it back."""

    n: int  # images
    correct: int  # images with their largest logit at the label
    accuracy: float  # correct / n, in 0..1
    interval: Interval  # Wilson's 95 % interval of the accuracy
    top5: float | None  # the share of images whose label has one of the 5 largest logits; None for 5 classes or fewer
    nll: float  # mean cross-entropy, natural logarithm
    ece: float  # expected calibration error: |confidence - accuracy| of a bin, averaged over the images
    bins: list[Bin]  # of the confidence (the largest probability): 15, equally wide, open below and closed above
    macro: ClassScore  # means over the classes that have images; its recall is the balanced accuracy
    per_class: dict[str, ClassScore]  # in the order of the labels
    confusion: list[list[int]]  # counts: a row for each true class, a column for each predicted one

    @property
    def classes(self) -> list[str]:
        return list(self.per_class)

    def confused(self, most: int = 5) -> list[Pair]:
        """The most frequent mistakes, worst first; of equally frequent ones the first in the matrix."""
        totals = [score.n for score in self.per_class.values()]
        cells = ((i, j, count) for i, row in enumerate(self.confusion) for j, count in enumerate(row))
        pairs = [Pair(i, j, count, totals[i]) for i, j, count in cells if i != j and count]
        return sorted(pairs, key=lambda pair: -pair.count)[:most]


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
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    logits, labels = logits.detach().cpu().double(), labels.detach().cpu().long()
    _check(logits, labels, classes)
    said = logits.argmax(1)
    confusion = confusion_matrix(labels, said, labels=range(len(classes)))
    n, correct = len(labels), int(confusion.trace())
    scores: Any = partial(precision_recall_fscore_support, labels, said, zero_division=math.nan)  # type: ignore[arg-type]
    per_class, macro = scores(labels=range(len(classes))), scores(labels=labels.unique(), average="macro")
    ece, bins = _calibration(logits.softmax(1).amax(1), (said == labels).double())
    return Scorecard(
        n=n,
        correct=correct,
        accuracy=correct / n,
        interval=wilson(correct, n),
        top5=_top5(logits, labels) if len(classes) > 5 else None,
        nll=F.cross_entropy(logits, labels).item(),
        ece=ece,
        bins=bins,
        macro=_class_score(n, *macro[:3]),
        per_class={name: _class_score(n, *row) for name, *row, n in zip(classes, *per_class, strict=True)},
        confusion=confusion.tolist(),
    )


def _class_score(n: int, *shares: float) -> ClassScore:
    """From scikit-learn's precision, recall and F1, of which NaN is what would divide by zero."""
    precision, recall, f1 = (None if math.isnan(share) else float(share) for share in shares)
    return ClassScore(n=int(n), precision=precision, recall=recall, f1=f1)


def _top5(logits: Tensor, labels: Tensor) -> float:
    """The share of labels among the 5 largest logits; of equal logits the first class counts, as in `argmax`."""
    best = logits.argsort(dim=1, descending=True, stable=True)[:, :5]
    return (best == labels.unsqueeze(1)).any(1).double().mean().item()


def _calibration(confidence: Tensor, right: Tensor) -> tuple[float, list[Bin]]:
    """The expected calibration error and its bins; Guo et al. 2017, arXiv 1706.04599, equations 1 to 3."""
    place = (confidence * _BINS).ceil().long() - 1
    counts = torch.bincount(place, minlength=_BINS)
    sure, hits = (torch.bincount(place, weights, _BINS) for weights in (confidence, right))
    rows = zip(counts.tolist(), sure.tolist(), hits.tolist(), strict=True)
    empty = Bin(n=0, confidence=None, accuracy=None)
    bins = [Bin(n=n, confidence=total / n, accuracy=hit / n) if n else empty for n, total, hit in rows]
    return (sure - hits).abs().sum().item() / len(place), bins


def _check(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    if len(set(classes)) < len(classes):
        raise UserError("classes: two classes share a name; give each its own")
    n, known = len(labels), len(classes)
    if not n:
        raise UserError("no images to judge on: at least one image is needed")
    if logits.shape != (n, known) or labels.min() < 0 or labels.max() >= known:
        raise UserError(
            f"logits of shape {list(logits.shape)} do not fit {n} labels from {labels.min()} to {labels.max()} "
            f"of {known} classes: judge the model on data with the classes it was trained on"
        )
    bad = (~torch.isfinite(logits)).any(1).nonzero().flatten()
    if len(bad):
        raise UserError(
            f"logits: {len(bad):,} of {n:,} images have a NaN or infinite logit, image {bad[0]} the first: "
            "the training diverged or the exported file is broken; lower the learning rate, or export again"
        )


# --- the scorecard on a terminal ---------------------------------------------------------------------------


def table(card: Scorecard, views: Mapping[str, Scorecard] | None = None) -> RenderableType:
    """For rich's `print`: the headline, the classes (beyond 20, the worst 10) and the most confused pairs.

    `views` are scorecards of the same model and images with test-time views, by name: reported apart.
    """
    from rich.console import Group

    return Group(*_headline(card), _class_table(card), *_confused(card), *(_views(card, views) if views else ()))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _span(interval: Interval) -> str:
    return f"{_percent(interval.lo)} to {_percent(interval.hi)}"


def _headline(card: Scorecard) -> list[Text]:
    from rich.text import Text

    facts = {} if card.top5 is None else {"top-5": _percent(card.top5)}
    facts |= {"nll": f"{card.nll:.4f}", "ECE": _percent(card.ece), "macro F1": _percent(card.macro.f1)}
    return [
        Text.assemble((f"{_percent(card.accuracy)} accuracy", "bold"), f"  95 % interval {_span(card.interval)}"),
        Text(f"{card.correct:,} of {card.n:,} images right", "dim"),
        Text("   ").join(Text.assemble((f"{name} ", "dim"), value) for name, value in facts.items()),
    ]


def _grid(name: str, *numbers: str) -> Table:
    """An empty table: a column of names, which give way where the terminal is narrow, and columns of numbers."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column(name, max_width=26, no_wrap=True, overflow="ellipsis")
    for title in numbers:
        grid.add_column(title, justify="right", no_wrap=True)
    return grid


def _class_table(card: Scorecard) -> Table:
    from rich.bar import Bar
    from rich.text import Text

    # The bar shows what is missing, longest for the worst class: bars of 97 % and 98 % would look alike.
    rows = [(1 - (score.f1 or 0.0), name, score) for name, score in card.per_class.items() if score.n]
    head, longest = "class", max(missing for missing, _, _ in rows)
    if len(card.per_class) > _ALL_CLASSES:
        rows = sorted(rows, key=lambda row: row[0], reverse=True)[:_WORST_CLASSES]
        head = f"worst {len(rows)} of {len(card.per_class)} classes"
    grid = _grid(head, "images", "precision", "recall", "F1")
    grid.add_column("1 - F1")
    for missing, name, score in rows:
        grid.add_row(Text(name), *_cells(score), Bar(longest or 1.0, 0.0, missing, width=14, color="red"))
    grid.add_section()
    grid.add_row("macro average", *_cells(card.macro), style="dim")
    return grid


def _cells(score: ClassScore) -> list[str]:
    return [f"{score.n:,}", *map(_percent, (score.precision, score.recall, score.f1))]


def _confused(card: Scorecard) -> list[Text]:
    """A line for each of the most frequent mistakes."""
    from rich.text import Text

    names = card.classes
    return [
        Text.assemble((names[true], "bold"), " taken for ", (names[said], "bold"), f": {count:,} of {n:,}")
        for true, said, count, n in card.confused()
    ]


def _views(card: Scorecard, views: Mapping[str, Scorecard]) -> list[RenderableType]:
    """A row for each kind of test-time views, below a line that keeps it apart from the headline."""
    from rich.text import Text

    grid = _grid("views", "accuracy", "points", "95 % interval", "nll", "ECE")
    for name, seen in views.items():
        points = f"{100 * (seen.accuracy - card.accuracy):+.2f}"
        grid.add_row(name, _percent(seen.accuracy), points, _span(seen.interval), f"{seen.nll:.4f}", _percent(seen.ece))
    note = "  not the accuracy above, which looks at each image once"
    return [Text.assemble(("\nwith test-time views", "bold"), (note, "dim")), grid]
