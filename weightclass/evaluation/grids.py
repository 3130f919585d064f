"""Grids of images: what the network saw, what it got wrong, which classes it confuses.

Of the images only those that are drawn are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weightclass.evaluation.metrics import Pair, Scorecard
from weightclass.evaluation.page import FAINT, GREEN, VERMILLION, box, fit, page, text_width
from weightclass.evaluation.predict import Images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP, LINE = 14, 18  # pixels between tiles, and of a line of text
Line = tuple[str, str, str]  # a name that may be shortened, what follows it, the colour


def samples(seen: Sequence[tuple[Tensor, Tensor]], classes: Sequence[str], path: str | Path, title: str) -> None:
    """A contact sheet of images [n, C, H, W], uint8, and labels: first as they are, then a column for each epoch.

    Labels are int64 [n] or, where images are mixed, the classes' shares, float32 [n, classes]. A row begins with its
    class; below an image stands its label where that is another.
    """
    columns = [(_tiles(images, 128), _captions(labels, classes)) for images, labels in seen]
    names = columns[0][1]
    texts = [[lines * (lines != name) for lines, name in zip(column, names, strict=True)] for _, column in columns]
    _, tall, wide, _ = columns[0][0].shape
    left = 2 * GAP + min(160, math.ceil(max(text_width(name, 8) for [(name, *_)] in names)))
    across, down, top = wide + GAP, tall + GAP + LINE * max(len(lines) for below in texts for lines in below), LINE + 4
    with _sheet(path, title, max(left + len(columns) * across + GAP, 420), top + len(names) * down) as axes:
        for row, [(name, *_)] in enumerate(names):
            axes.text(GAP, top + row * down + tall / 2, fit(name, left - 2 * GAP, 8), fontsize=8, va="center")
        for column, ((tiles, _), below) in enumerate(zip(columns, texts, strict=True)):
            x = left + column * across + GAP * (column > 0)
            axes.text(x, 0, f"epoch {column}" if column else "as it is", fontsize=6.5, color=FAINT, va="top")
            for row, (tile, lines) in enumerate(zip(tiles, below, strict=True)):
                _paste(axes, tile, (x, top + row * down), lines)


def mistakes(
    images: Images,
    truth: Sequence[str],
    predicted: Sequence[str],
    confidence: Sequence[float] | Tensor,
    path: str | Path,
    title: str,
) -> None:
    """The most confident wrong answers, 40 at most, worst first: the answer and its confidence in 0..1, then the truth.

    Without a mistake, the 12 right answers that the network was least sure of. `images` [n, C, H, W], uint8.
    """
    sure = torch.as_tensor(confidence).tolist()
    order = sorted(range(len(truth)), key=lambda i: -sure[i])
    if shown := [i for i in order if predicted[i] != truth[i]][:40]:
        texts = [[(predicted[i], f" ({sure[i]:.0%})", VERMILLION), (f"is {truth[i]}", "", FAINT)] for i in shown]
    else:
        shown, title = order[:-13:-1], f"{title}: none; the least certain of {len(truth):,} right answers"
        texts = [[(truth[i], f" ({sure[i]:.0%})", GREEN)] for i in shown]
    _grid(images[shown], texts, path, title)


def confused(card: Scorecard, images: Images, labels: Tensor, logits: Tensor, path: str | Path, title: str) -> None:
    """The 6 most confused pairs, worst first: a row of the images taken for the other class, most confident first.

    `images`, `labels` and `logits` are those that `card` judged. Nothing is written where nothing is confused.
    """
    pairs = card.confused(6)
    if not pairs:
        return
    chosen, confidence = _chosen(pairs, labels.cpu(), logits.detach().cpu().double())
    rows = [_tiles(images[indices], 128) for indices in chosen]
    tall, wide = rows[0].shape[1:3]
    columns = min(max(map(len, rows)), 1440 // (wide + GAP))
    width, heading = max(columns * (wide + GAP) + GAP, 560), 28
    down = heading + tall + LINE + 2 * GAP  # from row to row
    with _sheet(path, title, width, len(pairs) * down) as axes:
        for row, (pair, indices, tiles) in enumerate(zip(pairs, chosen, rows, strict=True)):
            axes.text(GAP, row * down, _heading(card.classes, pair, width - 2 * GAP), fontsize=8, va="top")
            for column, (index, tile) in enumerate(zip(indices[:columns].tolist(), tiles, strict=False)):
                place = GAP + column * (wide + GAP), row * down + heading
                _paste(axes, tile, place, [(f"{confidence[index]:.0%}", "", FAINT)])


def _captions(labels: Tensor, classes: Sequence[str]) -> list[list[Line]]:
    shares = labels if labels.is_floating_point() else F.one_hot(labels, len(classes))
    return [_caption(row, classes) for row in shares.tolist()]


def _caption(shares: Sequence[float], classes: Sequence[str]) -> list[Line]:
    """The class of an image; of a mixed one up to three, the largest share first."""
    largest = sorted(range(len(classes)), key=lambda label: -shares[label])[:3]
    return [(classes[i], f" {shares[i]:.0%}" * (shares[i] < 0.995), FAINT) for i in largest if shares[i] >= 0.005]


def _heading(classes: Sequence[str], pair: Pair, room: float) -> str:
    count = f": {pair.count:,} of {pair.n:,}"
    each = (room - text_width(f" taken for {count}", 8)) / 2
    true, predicted = (fit(classes[label], each, 8) for label in (pair.true, pair.predicted))
    return f"{true} taken for {predicted}{count}"


def _chosen(pairs: Sequence[Pair], labels: Tensor, logits: Tensor) -> tuple[list[Tensor], Tensor]:
    """The indices of the images of each pair, 10 at most, most confident first; and every image's confidence."""
    said, confidence = logits.argmax(1), logits.softmax(1).amax(1)
    order = confidence.argsort(descending=True, stable=True)
    labels, said = labels[order], said[order]
    return [order[(labels == pair.true) & (said == pair.predicted)][:10] for pair in pairs], confidence


def _grid(images: Tensor, texts: Sequence[Sequence[Line]], path: str | Path, title: str) -> None:
    """Tiles in rows, pixel for pixel as the network sees them, with lines of text below each."""
    tiles = _tiles(images, 256 if len(images) <= 6 else 128)
    count, tall, wide, _ = tiles.shape
    columns = min(count, max(4, round(math.sqrt(1.6 * tall / wide * count))))  # a little wider than tall
    across, down = wide + GAP, tall + GAP + LINE * max(map(len, texts))
    with _sheet(path, title, max(columns * across + GAP, 420), math.ceil(count / columns) * down) as axes:
        for i, (tile, lines) in enumerate(zip(tiles, texts, strict=True)):
            _paste(axes, tile, (GAP + i % columns * across, i // columns * down), lines)


@contextmanager
def _sheet(path: str | Path, title: str, width: int, height: int) -> Iterator[Axes]:
    """A page to paste on, in pixels from the left and from the top."""
    with page(path, title, width, height) as figure:
        axes = figure.add_axes(box(figure, 0, 0, width, height), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        yield axes


def _paste(axes: Axes, tile: np.ndarray, place: tuple[int, int], lines: Sequence[Line]) -> None:
    """A tile with its left upper corner at `place`, and lines of text below it."""
    (x, y), (tall, wide, _) = place, tile.shape
    axes.imshow(tile, extent=(x, x + wide, y + tall, y), interpolation="nearest", aspect="auto")
    for j, (name, tail, colour) in enumerate(lines):
        text = fit(name, wide + GAP - 4, 6.5, tail)
        axes.text(x, y + tall + 3 + j * LINE, text, fontsize=6.5, color=colour, va="top")


def _tiles(images: Tensor, wanted: int) -> np.ndarray:
    """uint8 [n, h, w, 3] with whole pixels repeated (or, for large images, averaged) to a size that shows them."""
    images = images.float() / 255
    images = images if images.shape[1] == 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    longer = max(images.shape[2:])
    scale, over = (max(1, round(wanted / longer)), 1) if longer <= 256 else (256, longer)
    images = F.interpolate(images, [max(1, side * scale // over) for side in images.shape[2:]], mode="area")
    return images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
