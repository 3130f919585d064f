"""A finished model judged on labelled pictures: those it was trained beside, another set's, or anybody's folder."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from weightclass import config, modelfile, results
from weightclass.data import folder, sources
from weightclass.data.dataset import Dataset
from weightclass.data.download import cache_folder
from weightclass.data.sources import Data
from weightclass.errors import UserError
from weightclass.evaluation import charts, grids, metrics
from weightclass.evaluation import robustness as robust
from weightclass.evaluation.corruptions import KINDS, SEVERITIES, corrupt
from weightclass.evaluation.metrics import Scorecard
from weightclass.evaluation.views import VIEWS, once
from weightclass.files import atomic_write
from weightclass.modelfile import Classifier
from weightclass.runlog import Progress

PLAIN, ALL = "one view", "all"
SPLITS = ("test", "validation", "train")
TOGETHER = 2**21  # values that are corrupted at a time: some 700 images of CIFAR
SETS = ("digits", *sources.CIFARS, "folder")


@dataclass(frozen=True)
class Judged:
    """Labelled images, numbered as the model numbers its classes; the split they are, and the files left out."""

    images: Dataset
    split: str
    left_out: tuple[str, ...] = ()
    names_from: str = ""
    """Where a published model, which has none, was given its classes' names from."""


def evaluate(
    model: str | Path | Classifier, split: str = "", data: str = "", data_path: str = "", device: str = "auto"
) -> Scorecard:
    """Score a model on labelled pictures: those of its recipe, another set's, or those of another folder (`data`).

    `split` is train, validation or test (empty: test where there is one); a look at the test set is counted in the
    model's run folder, as is one at a whole folder, for it may be the test set. Pictures that cannot be read are left
    out. Raises UserError.
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
    count(classifier, judged, "eval")
    images, looks = judged.images, {PLAIN: once} | (VIEWS if views else {})
    logits = {name: classifier.logits(images.images, look, progress) for name, look in looks.items()}
    cards = {name: metrics.scorecard(said, images.labels, images.classes) for name, said in logits.items()}
    if save:
        card = cards[PLAIN]
        headline = f"{classifier.name}: {card.accuracy:.2%} on {card.n:,} {judged.split} images"
        draw(card, logits[PLAIN], images, Path(save), headline)
    return cards


def robustness(
    classifier: Classifier,
    judged: Judged,
    clean: Scorecard,
    save: str | Path = "",
    progress: Progress | None = None,
) -> robust.Robustness:
    """Accuracy on the images that `clean` is the plain scorecard of, in 15 kinds and 5 severities of corruption. It
    belongs to the look at the test set that `scorecards` counted. `save`: a folder for robustness.json and .png."""
    images, labels, looks = judged.images.images, judged.images.labels, list(product(KINDS, SEVERITIES))
    right = torch.zeros(len(looks), dtype=torch.int64)
    together = max(1, TOGETHER // math.prod(classifier.image_shape))
    for first in range(0, len(images), together):
        piece = images[first : first + together]
        for i, (kind, severity) in enumerate(looks):
            said = classifier.logits(corrupt(piece, kind, severity, first)).argmax(1)
            right[i] += (said == labels[first : first + together]).sum()
            if progress:
                progress(len(looks) * first + (i + 1) * len(piece), len(looks) * len(images))
    shares = (right.double() / len(images)).view(len(KINDS), -1)
    told = {"model": classifier.name, "split": judged.split, "n": len(images), "clean": clean.accuracy}
    kinds = dict(zip(KINDS, map(tuple, shares.tolist()), strict=True))
    found = robust.Robustness(**told, mean=shares.mean().item(), kinds=kinds)
    if save:
        atomic_write(Path(save) / "robustness.json", msgspec.json.format(msgspec.json.encode(found)).decode() + "\n")
        robust.draw(found, images[:1][0], Path(save) / "robustness.png")
    return found


def count(classifier: Classifier, judged: Judged, why: str) -> None:
    """Note a look at the test set, or at what may be it, in the folder of the classifier's run."""
    home = classifier.home
    if judged.split in ("test", ALL) and (result := results.read(home)):
        results.write(home, msgspec.structs.replace(result, test_readings=results.count_reading(home, why)))


def draw(card: Scorecard, logits: Tensor, judged: Dataset, where: Path, headline: str) -> None:
    """What a person would rather look at than read: confusion.png, reliability.png, mistakes.png (of a faultless model
    its least certain answers) and, where there are mistakes, confused.png."""
    charts.confusion(card, where / "confusion.png", headline)
    charts.reliability(card, where / "reliability.png", headline)
    (where / "confused.png").unlink(missing_ok=True)  # an earlier model's, where this one confuses nothing
    grids.confused(card, judged.images, judged.labels, logits, where / "confused.png", f"most confused, {headline}")
    confidence, best = logits.softmax(1).max(1)
    truth, said = ([judged.classes[label] for label in labels.tolist()] for labels in (judged.labels, best))
    grids.mistakes(judged.images, truth, said, confidence, where / "mistakes.png", f"mistakes of {headline}")


def labelled(
    classifier: Classifier, split: str = "", data: str = "", data_path: str = "", progress: Progress | None = None
) -> Judged:
    """The images to judge `classifier` on. `data` names a set or a folder, empty: what it was trained on."""
    if split not in ("", *SPLITS):
        raise UserError(f"split {split!r}{config.near_miss(split, SPLITS)}")
    if data not in ("", *SETS):
        if not Path(data).expanduser().is_dir():
            raise UserError(f"data {data!r}: no such folder; or choose from {', '.join(SETS)}")
        if data_path:
            raise UserError(f"data {data!r} is a folder already: leave out --data-path")
        return _other_folder(classifier, split, data, progress)
    settings = config.to_tree(classifier.recipe.data) if data in ("", classifier.recipe.data.name) else {"name": data}
    settings["path"] = data_path or _home_path(classifier, data)
    table = config.build(settings, Data, "the model's data")
    if table.name == "folder" and not table.path:
        raise UserError(f"{classifier.name}: does not tell where its pictures lie: give --data FOLDER, or --data-path")
    parts = _fitting(classifier, table).load(progress)
    if not data and (trained_on := classifier.facts.get("data")) and trained_on != parts.digest():
        raise UserError(
            f"{classifier.name}: its pictures have changed since it was trained, and with them its splits: say what to "
            "judge it on with --data FOLDER"
        )
    split = split or ("test" if parts.test else "validation")
    if (found := getattr(parts, split)) is None:
        there = ", ".join(name for name in SPLITS if getattr(parts, name))
        raise UserError(f"{classifier.name}: its data has no {split} images, only {there}: choose another --split")
    return Judged(_renumbered(found, _matched(classifier, found.classes)), split, parts.left_out)


def _fitting(classifier: Classifier, table: Data) -> sources.Found:
    """The set, refused before it is fetched where the model cannot be judged on it."""
    found = sources.find(table)
    if (found.image_shape, found.classes) != (classifier.image_shape, len(classifier.classes)):
        ours = f"{len(classifier.classes)} classes and images of {list(classifier.image_shape)}"
        theirs = f"{found.classes} and {list(found.image_shape)}"
        raise UserError(f"{classifier.name}: has {ours}, {table.name} has {theirs}: name fitting images with --data")
    return found


def _home_path(classifier: Classifier, data: str) -> str:
    """Where the run of a model read its pictures; the model file itself does not tell."""
    recipe = classifier.home / "recipe.toml"
    if data or not classifier.path or not recipe.is_file():
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
    images = _renumbered(Dataset(decoded.images, decoded.labels, found.classes), ours)
    names_from = "" if ours == classifier.classes else data
    return Judged(images, ALL if len(found.splits) == 1 else which, decoded.left_out, names_from)


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
