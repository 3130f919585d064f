"""A model card in Markdown beside each exported file: what it is, how good, how fast, and what it must not be used for.

The sections are those of Mitchell et al. 2019 (Model Cards for Model Reporting) that a small image classifier needs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from weightclass import __version__, modelfile
from weightclass.edge.latency import Timing
from weightclass.evaluation.metrics import Scorecard
from weightclass.files import atomic_write
from weightclass.modelfile import Classifier
from weightclass.runlog import human_bytes

if TYPE_CHECKING:
    from weightclass.edge.export import Handed

FIT = {
    "crop": "the centre is cut out in the shape of the input, then resized",
    "pad": "resized to fit inside the input, black around it",
    "squash": "resized to the input, whatever its aspect",
}


def write(classifier: Classifier, handed: Handed, timing: Timing, computed_on: str) -> Path:
    """`FILE.md` beside the file; `timing` is one thread's on the processor `computed_on`."""
    path = handed.path.with_name(f"{handed.path.name}.md")
    sections = (_head(classifier, handed), _quality(handed), _device(classifier, handed, timing, computed_on))
    atomic_write(path, "\n\n".join([*sections, *common(classifier, handed.scorecard)]) + "\n")
    return path


def common(classifier: Classifier, card: Scorecard) -> list[str]:
    """The sections of any file's card: classes, calibration, limits, recipe."""
    sections = [_per_class(card), _calibration(card), _limits(classifier)]
    return [*sections, _recipe(classifier)] if "fingerprint" in classifier.facts else sections


def _head(classifier: Classifier, handed: Handed) -> str:
    facts = classifier.facts
    run = "published weights"
    if "fingerprint" in facts:
        run = f"run {facts['fingerprint'][:8]}, data `{classifier.recipe.data.name}`"
    params = sum(weight.numel() for weight in classifier.network.parameters())
    return (
        f"# {handed.path.name}\n\n"
        f"An image classifier of {len(classifier.classes)} classes and {params:,} parameters as {handed.format}, "
        f"{human_bytes(handed.bytes)}. Model `{classifier.name}` ({run}); exported by weightclass {__version__}."
    )


def _quality(handed: Handed) -> str:
    card, judged = handed.scorecard, handed.judged
    lo, hi = card.interval
    tried = [f"- refused before it: {line}" for line in handed.refused]
    return "\n".join(
        [
            "## How good it is\n",
            f"- accuracy **{card.accuracy:.2%}** on {card.n:,} {handed.judged_on} images (95 %: {lo:.2%} to {hi:.2%})",
            f"- beside the network it was made from, on the same images: {judged}",
            f"- the gate, on {handed.gated_on}, none that int8 is calibrated on: {handed.gate}",
            *([f"- int8: {handed.setting}"] if handed.setting else []),
            *tried,
        ]
    )


def _device(classifier: Classifier, handed: Handed, timing: Timing, computed_on: str) -> str:
    channels, height, width = classifier.image_shape
    any_size = (
        "any size (other sizes than the network's own are made to fit inside the file: "
        + FIT[classifier.recipe.data.fit]
    )
    takes = f"{any_size}, bilinear, antialiased)" if handed.format.startswith("onnx") else "no other size"
    shapes = {"onnx": f"[n, {channels}, H, W]", "openvino": f"[n, {channels}, {height}, {width}]"}
    shapes |= {"executorch": f"[1, {channels}, {height}, {width}]", "litert": f"[1, {height}, {width}, {channels}]"}
    shape = shapes[handed.format.split("-")[0]]
    return "\n".join(
        [
            "## On the device\n",
            f"- takes `uint8` pixels {shape}, {'RGB' if channels == 3 else 'grey'}, {takes}; "
            "the normalisation is inside",
            "- gives `float32` logits, a row an image, in the order of the table below",
            f"- {handed.bytes:,} bytes; {timing.p50:.2f} ms an image (median; p95 {timing.p95:.2f}) on one thread of "
            f"{computed_on}",
        ]
    )


def _per_class(card: Scorecard) -> str:
    rows = []
    for i, (name, score) in enumerate(card.per_class.items()):
        named = re.sub(r"([\\`*_~#|<>&\[\]])", r"\\\1", " ".join(name.split()))
        rows.append(f"| {i} | {named} | {score.n:,} | {_share(score.precision)} | {_share(score.recall)} |")
    return "\n".join(
        ["## Class by class\n", "| logit | class | images | precision | recall |", "|---|---|---|---|---|", *rows]
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _calibration(card: Scorecard) -> str:
    sure = [b for b in card.bins if b.n]
    rows = [f"| {b.n:,} | {_share(b.confidence)} | {_share(b.accuracy)} |" for b in sure]
    table = "\n".join(["| images | confidence | accuracy |", "|---|---|---|", *rows])
    return f"## Whether its confidence can be believed\n\nExpected calibration error {card.ece:.2%}.\n\n{table}"


def _limits(classifier: Classifier) -> str:
    several = f"one of its {len(classifier.classes)} classes"
    return (
        "## Limits\n\n"
        f"- It answers {several} for every picture, also for one that shows none of them.\n"
        "- Its accuracy holds for pictures like those it was judged on; other cameras and other light were not tried.\n"
        "- It is one training: with another seed its numbers would be somewhat different.\n"
        "- Nobody should be hurt, sorted out or refused anything on its word alone."
    )


def _recipe(classifier: Classifier) -> str:
    return f"## Recipe\n\n```toml\n{modelfile.header(classifier)['recipe'].strip()}\n```"
