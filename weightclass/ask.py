"""A model asked about unlabelled pictures: which files are meant, what it answers, and how that is written down."""

from __future__ import annotations

import csv
import glob
import io
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from weightclass import config, modelfile
from weightclass.data import cifar, images
from weightclass.data.ahead import ahead
from weightclass.data.images import Fit
from weightclass.device import cores
from weightclass.errors import UserError
from weightclass.files import atomic_write, write_jsonl
from weightclass.modelfile import Classifier, Prediction
from weightclass.runlog import Progress, console

TOGETHER = 256  # pictures that are read and answered at a time
LISTED, SHOWN = 1000, 12  # answers that a terminal is given, and classes that a summary names


def predict(
    model: Classifier,
    inputs: Sequence[str | Path],
    top: int = 1,
    fit: Fit | None = None,
    progress: Progress | None = None,
) -> tuple[list[tuple[str, Prediction]], list[str]]:
    """(id, answer) for files, folders (every picture below) and CIFAR batches, and a line for each broken file.

    A picture's id is its path, an image's of a batch its number or what the batch calls it, the batch's name in front
    where there are several files.
    """
    if fit and fit not in get_args(Fit):
        raise UserError(f"fit {fit!r}{config.near_miss(fit, get_args(Fit))}")
    files = list(dict.fromkeys(file for given in inputs for file in _files(given)))
    answers: list[tuple[str, Prediction]] = []
    broken: list[str] = []
    loaded = ahead((partial(_load, model, file, fit, len(files) > 1) for file in files), cores(), 2 * TOGETHER)
    done = 0
    while chunk := list(islice(loaded, TOGETHER)):
        broken += [str(one) for one in chunk if isinstance(one, UserError)]
        if sound := [one for one in chunk if not isinstance(one, UserError)]:
            logits = model.logits(torch.cat([pixels for _, pixels in sound]))
            ids = [each for names, _ in sound for each in names]
            answers += zip(ids, modelfile.answers(logits, model.classes, top), strict=True)
        done += len(chunk)
        if progress:
            progress(done, len(files))
    if not answers:
        raise UserError(f"no picture could be read; the first of {len(broken)}: {broken[0]}")
    return answers, broken


def _load(model: Classifier, file: Path, fit: Fit | None, several: bool) -> tuple[list[str], Tensor] | UserError:
    """Ids and pixels uint8 [n, C, H, W] of a picture or of a batch; an error is told, not raised."""
    try:
        if images.is_picture(file):
            return [images.shown(file.as_posix())], model.read(file, fit).unsqueeze(0)
        batch, ids = cifar.read_batch(file)
        ids = [f"{images.shown(file.name)}/{each}" for each in ids] if several else ids
    except UserError as error:
        return error
    if batch.shape[1:] == model.image_shape:
        return ids, torch.from_numpy(batch)
    return ids, torch.stack([model.read(one, fit) for one in batch.transpose(0, 2, 3, 1)])


def _files(given: str | Path) -> list[Path]:
    if not str(given):
        raise UserError("an empty name among the pictures: name files or folders")
    if not Path(given).exists():  # Windows' shells leave *.jpg to the program
        if found := sorted(glob.glob(str(given), recursive=True)):  # noqa: PTH207 (patterns may be absolute)
            return [file for each in found for file in _files(each)]
        raise UserError(f"{given}: no such file or folder")
    if not Path(given).is_dir():
        return [Path(given)]
    try:
        found = images.listed(Path(given))
    except OSError as error:
        raise UserError(f"{error.filename or given}: {error.strerror or error}") from None
    if not found:
        raise UserError(f"{given}: no pictures in it ({', '.join(sorted(images.SUFFIXES))})")
    return found


def write(answers: Sequence[tuple[str, Prediction]], as_csv: str | Path = "", as_json: str | Path = "") -> None:
    """The answers as a CSV file (id,label,confidence; more of the three for more classes) and as JSON lines."""
    if as_csv:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rest = range(2, len(answers[0][1].top) + 1)
        rows.writerow(["id", "label", "confidence", *(f"{key}_{n}" for n in rest for key in ("label", "confidence"))])
        for name, answer in answers:
            rows.writerow([name, *(value for label, share in answer.top for value in (label, f"{share:.6f}"))])
        atomic_write(as_csv, text.getvalue())
    if as_json:
        records: list[dict[str, Any]] = []
        for name, answer in answers:
            top = [{"label": label, "confidence": share} for label, share in answer.top]
            records.append({"id": name, **top[0]} | ({"top": top} if len(top) > 1 else {}))
        write_jsonl(as_json, records)


def show(answers: Sequence[tuple[str, Prediction]], written: str | Path = "") -> None:
    """Print a line for each picture or, where they are in a file, how many of each class there are; tabs in a pipe."""
    out = console()
    if not written and not out.is_terminal:
        for name, answer in answers:
            print(name, *(f"{label}\t{share:.4f}" for label, share in answer.top), sep="\t")
        return
    counts = Counter(answer.label for _, answer in answers).most_common()
    if written or len(answers) > LISTED:
        out.print(
            f"{len(answers):,} answers {f'in {written}' if written else '(--csv and --json list them)'}", markup=False
        )
        rows = [(label, f"{count:,}") for label, count in counts[:SHOWN]]
        rows += [(f"and {len(counts) - SHOWN} classes more", "")] * (len(counts) > SHOWN)
    else:
        rows = [(name, *(f"{label} {share:.1%}" for label, share in answer.top)) for name, answer in answers]
    out.print(_grid(rows))


def _grid(rows: Sequence[tuple[str, ...]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid
