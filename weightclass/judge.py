"""What is done with a finished model: judge it on labelled pictures, ask it about unlabelled ones."""

from __future__ import annotations

import csv
import glob
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import msgspec
import torch
from torch import Tensor

from weightclass import config, modelfile, results
from weightclass.data import cifar, folder, images, sources
from weightclass.data.ahead import ahead
from weightclass.data.dataset import Dataset
from weightclass.data.download import cache_folder
from weightclass.data.images import Fit
from weightclass.data.sources import Data
from weightclass.device import cores
from weightclass.errors import UserError
from weightclass.evaluation import metrics, pictures
from weightclass.evaluation.metrics import Scorecard
from weightclass.evaluation.views import VIEWS, once
from weightclass.files import atomic_write, write_jsonl
from weightclass.modelfile import Classifier, Prediction

PLAIN = "one view"
SPLITS = ("test", "validation", "train")
SETS = ("digits", *sources.CIFARS, "folder")
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Judged:
    """Labelled images, numbered as the model numbers its classes; the split they are, and the files left out."""

    images: Dataset
    split: str
    left_out: tuple[str, ...] = ()


def evaluate(
    model: str | Path | Classifier, split: str = "", data: str = "", data_path: str = "", device: str = "auto"
) -> Scorecard:
    """Score a model on labelled pictures: those of its recipe, another set's, or those of another folder (`data`).

    `split` is train, validation or test (empty: test where there is one); a look at the test set is counted in the
    model's run folder. Pictures that cannot be read are left out. Raises UserError.
    """
    classifier = model if isinstance(model, Classifier) else modelfile.load(model, device)
    return scorecards(classifier, labelled(classifier, split, data, data_path))[PLAIN]


def scorecards(
    classifier: Classifier,
    judged: Judged,
    views: bool = False,
    save: str | Path = "",
    progress: Progress | None = None,
) -> dict[str, Scorecard]:
    """By how the network looked: PLAIN and, with `views`, each kind of test-time views. Counts a look at the test set.

    `save` names a folder for the plain scorecard's pictures.
    """
    home = classifier.path.parent if classifier.path else Path()
    if judged.split == "test" and (result := results.read(home)):
        results.write(home, msgspec.structs.replace(result, test_readings=results.count_reading(home, "eval")))
    images, looks = judged.images, {PLAIN: once} | (VIEWS if views else {})
    logits = {name: classifier.logits(images.images, look, progress) for name, look in looks.items()}
    cards = {name: metrics.scorecard(said, images.labels, images.classes) for name, said in logits.items()}
    if save:
        card = cards[PLAIN]
        headline = f"{classifier.name}: {card.accuracy:.2%} on {card.n:,} {judged.split} images"
        draw(card, logits[PLAIN], images, Path(save), headline)
    return cards


def draw(card: Scorecard, logits: Tensor, judged: Dataset, where: Path, headline: str) -> None:
    """confusion.png, reliability.png and, where there are mistakes, confused.png and mistakes.png: what a person would
    rather look at than read."""
    pictures.confusion(card, where / "confusion.png", headline)
    pictures.reliability(card, where / "reliability.png", headline)
    pictures.confused(card, judged.images, judged.labels, logits, where / "confused.png", f"most confused, {headline}")
    confidence, best = logits.softmax(1).max(1)
    truth, said = ([judged.classes[label] for label in labels.tolist()] for labels in (judged.labels, best))
    pictures.mistakes(judged.images, truth, said, confidence, where / "mistakes.png", f"mistakes of {headline}")


# --- labelled pictures -------------------------------------------------------------------------------------


def labelled(
    classifier: Classifier, split: str = "", data: str = "", data_path: str = "", progress: Progress | None = None
) -> Judged:
    """The images to judge `classifier` on. `data` names a set or a folder, empty: what it was trained on."""
    if split not in ("", *SPLITS):
        raise UserError(f"split {split!r}{config.near_miss(split, SPLITS)}")
    if data not in ("", *SETS):
        if not Path(data).expanduser().is_dir():
            raise UserError(f"data {data!r}: no such folder; or choose from {', '.join(SETS)}")
        return _other_folder(classifier, split, data, progress)
    settings = config.to_tree(classifier.recipe.data) if data in ("", classifier.recipe.data.name) else {"name": data}
    settings["path"] = data_path or _home_path(classifier, data)
    parts = sources.load(config.build(settings, Data, "the model's data"), progress)
    if not data and (trained_on := classifier.facts.get("data")) and trained_on != parts.digest():
        raise UserError(
            f"{classifier.name}: its pictures have changed since it was trained, and with them its splits: say what to "
            "judge it on with --data FOLDER"
        )
    split = split or ("test" if parts.test else "validation")
    if (found := getattr(parts, split)) is None:
        raise UserError(f"{classifier.name}: no {split} images: its recipe holds none out (data.{split} = 0)")
    return Judged(_renumbered(found, _matched(classifier, found.classes)), split, parts.left_out)


def _home_path(classifier: Classifier, data: str) -> str:
    """Where the run of a model read its pictures; the model file itself does not tell."""
    recipe = classifier.path.parent / "recipe.toml" if classifier.path and not data else None
    if not recipe or not recipe.is_file():
        return ""
    return config.parse_toml(recipe.read_text(encoding="utf-8"), str(recipe)).get("data", {}).get("path", "")


def _other_folder(classifier: Classifier, split: str, data: str, progress: Progress | None) -> Judged:
    """All pictures below `data`, or those of one of its splits, in the classifier's size."""
    shape = classifier.image_shape
    found = replace(folder.find(data, max(shape), "grey" if shape[0] == 1 else "rgb"), image_shape=shape)
    which = split or next(name for name in SPLITS if name in found.splits)
    if which not in found.splits:
        raise UserError(f"{data}: has no {split} images, only {', '.join(found.splits)}")
    ours = _matched(classifier, found.classes)
    decoded = folder.decode(found, which, classifier.recipe.data.fit, cache_folder(), progress)
    whole = len(found.splits) == 1 and not split  # what it was trained on is nobody's guess: count it as a test
    images = _renumbered(Dataset(decoded.images, decoded.labels, found.classes), ours)
    return Judged(images, "test" if whole else which, decoded.left_out)


def _matched(classifier: Classifier, theirs: tuple[str, ...]) -> tuple[str, ...]:
    """The model's classes, of which `theirs` are some. A published state dict has no names of its own: where those of
    CIFAR are not meant, it takes those of a folder with as many classes, in their order."""
    ours = classifier.classes
    strange = [name for name in theirs if name not in ours]
    if classifier.facts.get("published") and len(strange) == len(theirs) == len(ours):
        return theirs
    if strange:
        near = config.near_miss(strange[0], ours) if len(ours) <= 20 else f" {len(ours)}"
        raise UserError(f"class {strange[0]!r} of the pictures is not one of the model's{near}")
    return ours


def _renumbered(found: Dataset, ours: tuple[str, ...]) -> Dataset:
    numbers = torch.tensor([ours.index(name) for name in found.classes])
    return Dataset(found.images, numbers[found.labels], ours)


# --- unlabelled pictures -----------------------------------------------------------------------------------

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
        if file.suffix.lower() in images.SUFFIXES:
            return [images.shown(file.as_posix())], model.read(file, fit).unsqueeze(0)
        batch, ids = cifar.read_batch(file)
        ids = [f"{images.shown(file.name)}/{each}" for each in ids] if several else ids
    except UserError as error:
        return error
    if batch.shape[1:] == model.image_shape:
        return ids, torch.from_numpy(batch)
    return ids, torch.stack([model.read(one, fit) for one in batch.transpose(0, 2, 3, 1)])


def _files(given: str | Path) -> list[Path]:
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


def table(answers: Sequence[tuple[str, Prediction]], written: str | Path = "") -> Any:
    """For rich: a line for each picture or, where they are in a file, how many of each class there are."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    if not written and len(answers) <= LISTED:
        for name, answer in answers:
            grid.add_row(Text(name), *(Text(f"{label} {share:.1%}") for label, share in answer.top))
        return grid
    counts = Counter(answer.label for _, answer in answers).most_common()
    for label, count in counts[:SHOWN]:
        grid.add_row(Text(label), f"{count:,}")
    if len(counts) > SHOWN:
        grid.add_row(f"and {len(counts) - SHOWN} classes more", "")
    where = f"in {written}" if written else "(--csv and --json list them)"
    return Group(Text(f"{len(answers):,} answers {where}"), grid)
