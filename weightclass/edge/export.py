"""A trained network as files for devices: each is compared with the network, and only handed over where it agrees."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module, util
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import structs
from torch import Tensor

from weightclass import __version__, config, files, judge, modelfile
from weightclass.data.dataset import Dataset
from weightclass.edge import card, latency
from weightclass.edge.gate import GATES, Agreement, compare
from weightclass.edge.rungs import Rung, ladder
from weightclass.edge.sensitivity import ranking
from weightclass.edge.shipped import Shipped
from weightclass.errors import UserError
from weightclass.evaluation import metrics
from weightclass.evaluation.metrics import Scorecard
from weightclass.files import check_writable, run_lock, safe_name
from weightclass.judge import Judged
from weightclass.modelfile import EXPORTS, Classifier, Exported
from weightclass.runlog import Progress, human_bytes
from weightclass.runtimes.runner import runner, stamp
from weightclass.seeding import key, permutation


class Format(NamedTuple):
    """A kind of exported file: the module that writes and runs it, what its numbers are, and its file's ending."""

    module: str
    numbers: str
    ending: str


FORMATS = {
    "onnx": Format("onnx", "float32", ".onnx"),
    "onnx-fp16": Format("onnx", "fp16", "-fp16.onnx"),
    "onnx-int8": Format("onnx", "int8", "-int8.onnx"),
    "openvino": Format("openvino", "float32", ".xml"),
    "openvino-int8": Format("openvino", "int8", "-int8.xml"),
    "executorch": Format("executorch", "float32", ".pte"),
    "executorch-int8": Format("executorch", "int8", "-int8.pte"),
    "litert": Format("litert", "float32", ".tflite"),
    "litert-int8": Format("litert", "int8", "-int8.tflite"),
}
LIBRARIES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino", "nncf"),
    "executorch": ("executorch", "torchao"),
    "litert": ("ai_edge_litert",),
}
"""What each extra installs, of what is imported."""
TRIAL = ".trial"
CALIBRATION, GATED, RANKED = 256, 2000, 64
"""Images: that int8's ranges are measured on, that the gate looks at, that rank the layers."""
TIMED, SECONDS = 64, 1.0
"""Images that a file is timed on for its card, and how long for each file."""


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """A file that passed the gate, and what it is worth."""

    format: str
    path: Path
    bytes: int
    setting: str
    """The rung of the ladder that passed; empty for float files."""
    refused: list[str]
    """What was tried before, and why it did not do."""
    gated_on: str
    gate: Agreement
    judged_on: str
    judged: Agreement
    scorecard: Scorecard
    """Of the file itself, on `judged_on`."""


class Passed(NamedTuple):
    """A file, not yet in its place, that agrees with the network."""

    format: str
    path: Path
    rung: Rung | None
    gate: Agreement
    refused: list[str]


class Material(NamedTuple):
    """The images of an export: to calibrate on, to gate on, to judge on; none is in two of them."""

    calibration: Tensor
    gate: Dataset
    gated_on: str
    judged: Judged
    judged_on: str


def export(
    model: str | Path | Classifier,
    formats: Sequence[str] = ("onnx", "onnx-int8"),
    out: str | Path = "",
    data: str = "",
    data_path: str = "",
    agreement: float = 0,
    first: Rung = Rung(),  # noqa: B008 (frozen)
    say: Callable[[str], object] = lambda line: None,
    progress: Progress | None = None,
) -> list[Handed]:
    """Write `model` in each of `formats` into `out` (default: export/ in its run's folder), a model card beside each.

    A file is handed over where it says what the network says on images that are neither test images nor those that it
    was calibrated on; int8 begins at the rung `first` and climbs to safer ones. `agreement` replaces the gates' least
    share of equal top-1 classes. The test set is read once, after all choices, for the cards. Raises UserError where a
    file does not agree at any rung, after handing over the others.
    """
    classifier = model if isinstance(model, Classifier) else modelfile.load(model, "cpu")
    if isinstance(classifier.network, Exported):
        raise UserError(f"{classifier.path}: an exported file already: name the run's folder or its model.safetensors")
    if not (wanted := [checked(name) for name in dict.fromkeys(formats)]):
        raise UserError(f"no format is named: choose from {', '.join(FORMATS)}")
    folder = Path(out) if out else classifier.home / EXPORTS
    check_writable(folder / "card.md")
    material = gather(classifier, data, data_path, progress)
    classifier = replace(classifier, classes=material.judged.images.classes)  # a published model has names from there
    with run_lock(folder):
        shipped = Shipped(classifier.network, classifier.image_shape, classifier.mean, classifier.std)
        reference = classifier.logits(material.gate.images)
        job = Job(classifier, shipped, material, reference, folder, agreement, say)
        try:
            passed, failures = job.passing(wanted, first)
            judge.count(classifier, material.judged, "export")
            reference = classifier.logits(material.judged.images.images, progress=progress)
            handed = [job.judge(one, reference, progress) for one in passed]
        finally:
            shutil.rmtree(folder / TRIAL, ignore_errors=True)
        images = material.gate.images[:TIMED].numpy()
        runners = {one.format: runner(one.path, threads=1) for one in handed}
        timings = latency.measure(runners, images, SECONDS * len(handed))
        for one in handed:
            card.write(classifier, one, timings[one.format], latency.cpu().name)
    if failures:
        raise UserError(f"{'; '.join(failures)}; handed over in {folder}: {', '.join(one.format for one in handed)}")
    return handed


def checked(name: str) -> str:
    """`name`, where it is a format that can be written here. Raises UserError."""
    if name not in FORMATS:
        raise UserError(f"format {name!r}{config.near_miss(name, FORMATS)}")
    module = FORMATS[name].module
    if lacking := next((library for library in LIBRARIES[module] if not util.find_spec(library)), ""):
        raise UserError(f"{name} needs {lacking}: pip install 'weightclass[{module}]'")
    if module == "litert":
        import_module("weightclass.edge.litert").converter()
    return name


def writable() -> list[str]:
    """All formats that can be written here. Raises UserError where there is none."""
    found = []
    for name in FORMATS:
        with suppress(UserError):
            found.append(checked(name))
    return found or [checked("onnx")]


def gather(classifier: Classifier, data: str = "", data_path: str = "", progress: Progress | None = None) -> Material:
    """The images that an export looks at: held-out ones to gate on where the recipe has them, else training images."""
    train = judge.labelled(classifier, "train", data, data_path, progress).images
    judged = judge.labelled(classifier, "", data, data_path, progress)
    shares = 3 if judged.split == judge.ALL else 2  # a folder that is one split is shared out
    start = min(CALIBRATION, len(train) // shares)
    if not start:
        raise UserError(f"{classifier.name}: {len(train)} image(s) are too few to calibrate and compare with")
    stop = start + min(GATED, (len(train) - start) // (shares - 1))
    calibration, compared, rest = permutation(key(0, "calibration"), len(train)).tensor_split([start, stop])
    ours = data in ("", classifier.recipe.data.name)
    gate, gated_on = train.subset(compared), "training images" if ours else "other images"
    if judged.split == judge.ALL:
        judged = replace(judged, images=train.subset(rest))
    elif judged.split == "test" and classifier.recipe.data.validation and ours:
        held_out = judge.labelled(classifier, "validation", data, data_path, progress).images
        shuffled = permutation(key(0, "gate"), len(held_out))
        gate, gated_on = held_out.subset(shuffled[:GATED]), "validation images"
    judged_on = judged.split if ours else "other"
    return Material(train.subset(calibration).images[:], gate, gated_on, judged, judged_on)


@dataclass(frozen=True)
class Job:
    """What the files of one export share."""

    classifier: Classifier
    shipped: Shipped
    material: Material
    reference: Tensor
    """The network's own logits of `material.gate`."""
    folder: Path
    agreement: float
    say: Callable[[str], object]

    def passing(self, names: Sequence[str], first: Rung) -> tuple[list[Passed], list[str]]:
        """Those that pass, and why others do not. Raises UserError where none does."""
        passed, failures = [], []
        for name in names:
            try:
                passed.append(self.write(name, first))
            except files.Unwritable:
                raise
            except UserError as error:
                failures.append(str(error))
        if not passed:
            raise UserError("; ".join(failures))
        return passed, failures

    def write(self, name: str, first: Rung) -> Passed:
        """One format, from `first` up the ladder until a file passes the gate."""
        kind, refused = FORMATS[name], []
        gate = GATES[kind.numbers]
        gate = structs.replace(gate, agreement=self.agreement) if self.agreement else gate
        path = self.folder / TRIAL / name / (safe_name(self.classifier.name) + kind.ending)
        rungs = ladder(first, lambda: ranking(self.shipped, self.material.calibration[:RANKED]))
        for rung in rungs if kind.numbers == "int8" else (None,):
            measured = self._trial(name, path, rung)
            if not (why := gate.refusal(measured)):
                self.say(f"{name}{f', {rung}' if rung else ''}: {measured.agreement:.2%} the same class")
                return Passed(name, path, rung, measured, refused)
            refused.append(f"{rung}: {why}" if rung else why)
            self.say(f"{name}, {refused[-1]}: refused")
        asks = "; --agreement asks for less" if measured.agreement < gate.agreement else ""
        raise UserError(f"{name}: nothing agrees with the network, last {refused[-1]}{asks}")

    def _trial(self, name: str, path: Path, rung: Rung | None) -> Agreement:
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(parents=True)
        writer = import_module(f"weightclass.edge.{FORMATS[name].module}")
        header, fit = modelfile.header(self.classifier) | {"export": "{}"}, self.classifier.recipe.data.fit
        if FORMATS[name].numbers == "fp16":
            writer.write_half(self.shipped, path, header, fit)
        else:
            writer.write(self.shipped, path, header, fit, self.material.calibration if rung else None, rung)
        gate = self.material.gate
        return compare(self.reference, modelfile.load(path).logits(gate.images), gate.labels)

    def _in_place(self, path: Path) -> None:
        """Out of the trial folder; what names another file (OpenVINO's .xml its .bin) comes after it."""
        (self.folder / f"{path.name}.md").unlink(missing_ok=True)  # the card of an older file
        for file in sorted(path.parent.iterdir(), key=lambda file: file == path):
            files.replace(file, self.folder / file.name)

    def judge(self, passed: Passed, reference: Tensor, progress: Progress | None) -> Handed:
        """The scorecard of the file itself, which it then carries; `reference` are the network's logits."""
        judged, exported = self.material.judged, modelfile.load(passed.path)
        logits = exported.logits(judged.images.images, progress=progress)
        handed = Handed(
            format=passed.format,
            path=self.folder / passed.path.name,
            bytes=0,
            setting=str(passed.rung or ""),
            refused=passed.refused,
            gated_on=self.material.gated_on,
            gate=passed.gate,
            judged_on=self.material.judged_on,
            judged=compare(reference, logits, judged.images.labels),
            scorecard=metrics.scorecard(logits, judged.images.labels, judged.images.classes),
        )
        told = {key: value for key, value in structs.asdict(handed).items() if key not in ("path", "bytes")}
        told |= {"scorecard": headline(handed.scorecard), "weightclass": __version__}
        stamp(passed.path, modelfile.header(self.classifier) | {"export": msgspec.json.encode(told).decode()})
        self._in_place(passed.path)
        return structs.replace(handed, bytes=size(handed.path))


def headline(scorecard: Scorecard) -> dict[str, object]:
    """What of a scorecard travels in a file."""
    return {name: getattr(scorecard, name) for name in ("n", "accuracy", "interval", "nll", "ece")}


def size(path: Path) -> int:
    """Bytes of an exported file, with the weights that OpenVINO, and torch for somebody's .onnx, keep beside it."""
    beside = path.with_suffix(".bin") if path.suffix == ".xml" else path.with_name(f"{path.name}.data")
    return sum(file.stat().st_size for file in (path, beside) if file.is_file())


def table(handed: Sequence[Handed], narrow: bool = False) -> Any:
    """What was handed over, for rich."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("format", "file", "size", "accuracy", "change", "same class", *(() if narrow else ("setting",))):
        grid.add_column(title, justify="left" if title in ("format", "file", "setting") else "right", overflow="fold")
    for one in handed:
        change, accuracy = f"{100 * one.judged.accuracy_change:+.2f}", f"{one.scorecard.accuracy:.2%}"
        cells = [one.format, one.path.name, human_bytes(one.bytes), accuracy, change, f"{one.judged.agreement:.2%}"]
        grid.add_row(*cells, *(() if narrow else (one.setting,)))
    return grid
