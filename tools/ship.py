"""`python -m tools.ship RUN NAME`: makes a finished run's network the champion of its class, in weightclass/weights/.

A run is taken that a recipe of the package trains on all images. The fp16 file is judged itself, which counts as a
reading of the test set; it replaces one only where it is better by more than chance.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from weightclass import __version__, champions, judge, modelfile, recipe, results
from weightclass.champions import CLASSES, LIMIT, Facts
from weightclass.edge import card
from weightclass.errors import UserError
from weightclass.evaluation.corruptions import SEVERITIES
from weightclass.evaluation.metrics import Scorecard
from weightclass.evaluation.robustness import Robustness
from weightclass.files import atomic_write
from weightclass.modelfile import FILE_NAME
from weightclass.runlog import human_bytes, human_seconds, working

SET, CARD = "cifar10", 10_000  # what the published marks are on; bytes that a card may take


def ship(run: Path, name: str) -> str:
    """Make the network of `run` the champion `name`; returns the line that tells of it. Raises UserError."""
    if (result := results.read(run)) is None:
        raise UserError(f"{run}: no {results.FILE_NAME} there: name a finished run's folder")
    model, before = modelfile.load(run, "cpu"), next(each.facts for each in champions.models() if each.name == name)
    facts = model.facts | {"command": check(model, result, name, before), "macs": result.macs}
    told = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    where = told["processor"] if result.computed_on.startswith("cpu") else told["accelerator"]
    facts |= {"pflops": result.train_pflops, "seconds": result.seconds, "machine": where}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as spare:
        size = modelfile.save(Path(spare, FILE_NAME), replace(model, name=name), half=True) + CARD
        back = replace(modelfile.load(spare, "cpu"), path=run / FILE_NAME)  # its home says where data is, and counts
    if (size := size + sum(file.stat().st_size for file in champions.FOLDER.glob("*") if file.stem != name)) > LIMIT:
        raise UserError(f"{name}: the box would hold {size:,} bytes, {LIMIT:,} at most")
    images = judge.labelled(back, "test")
    score = judge.scorecards(back, images)[judge.PLAIN]
    better(score, name, before)
    with working("images corrupted and judged") as progress:
        found = judge.robustness(back, images, score, progress=progress)
    facts |= {"accuracy": score.accuracy, "interval": list(score.interval), "n": score.n, "corrupted": found.mean}
    shipped = replace(back, facts=facts | {"test_readings": results.readings(run)})
    target = champions.FOLDER / f"{name}.safetensors"
    atomic_write(target.with_suffix(".md"), describe(shipped, score, result, found))
    size = modelfile.save(target, shipped, half=True)  # last: until here the same command again does it all
    return f"{target}: {human_bytes(size)}, {score.accuracy:.2%} on {score.n:,} test images"


def check(model: modelfile.Classifier, result: results.Result, name: str, before: Facts | None) -> str:
    """The command that trains the network, where it may compete in class `name`. Raises UserError."""
    data, ours = model.recipe.data, CLASSES[name]
    if (data.name, data.validation, data.subset, result.split) != (SET, 0, 0, "test"):
        raise UserError(f"{result.name}: not trained on all of {SET}: leave out data.validation and data.subset")
    if result.params > ours.params:
        raise UserError(f"{result.name}: {result.params:,} parameters are more than {name}'s {ours.params:,}")
    if ours.least and before and result.train_pflops >= before.pflops:
        raise UserError(f"{result.name}: {result.train_pflops:.3g} PFLOPs; the file there took {before.pflops:.3g}")
    if ours.least and model.recipe.distill:
        raise UserError(f"{result.name}: its PFLOPs are without those of its teachers: a sprint has none")
    for source in recipe.names():
        with suppress(UserError):  # its teachers or their cache are not here
            if recipe.fingerprint(recipe.load(source).recipe, "") == recipe.fingerprint(model.recipe, ""):
                return f"weightclass train {source}"
    raise UserError(f"{result.name}: no recipe of the package trains this run, or its teachers are not here")


def better(score: Scorecard, name: str, before: Facts | None) -> None:
    """Raise UserError unless the accuracy is what a compute champion needs, or above the interval of the file there."""
    if score.accuracy < (least := CLASSES[name].least):
        raise UserError(f"{name}: {score.accuracy:.2%} is below {least:.2%}: not shipped")
    if before and not least and score.accuracy <= (bar := before.interval[1]):
        raise UserError(
            f"{name}: {score.accuracy:.2%} is not above {bar:.2%}, where the interval of the file there ends"
        )


def describe(model: modelfile.Classifier, score: Scorecard, result: results.Result, found: Robustness) -> str:
    """The model card."""
    name, (lo, hi), facts = model.name, score.interval, model.facts
    lines = [
        f"# {name}\n\nAn image classifier of {len(model.classes)} classes: {result.params:,} parameters, "
        f"{result.macs:,} MACs an image, weights in fp16, norms in float32. It ships with weightclass {__version__}: "
        f'`weightclass predict {name} IMAGES`, `wc.load("{name}")`.\n\n## How good it is\n',
        f"- accuracy **{score.accuracy:.2%}** on {score.n:,} test images (95 %: {lo:.2%} to {hi:.2%}), one view",
        f"- {result.scorecard.accuracy:.2%} before its rounding to fp16; published: {CLASSES[name].published}",
        f"- the test set was read {facts['test_readings']} times in its run\n\n## What it cost\n",
        f"- `{facts['command']}` trains it again",
        f"- {result.train_pflops:.3g} PFLOPs, {result.epochs} epochs, {human_seconds(result.seconds)} on "
        f"{facts['machine']} ({result.computed_on})",
    ]
    return "\n\n".join(["\n".join(lines), *card.common(model, score), robust(found)]) + "\n"


def robust(found: Robustness) -> str:
    """The section on corrupted images, accuracies in %."""
    lines = [
        "## On corrupted images\n",
        f"CIFAR-10-C style, our own corruptions of the same {found.n:,} images: **{found.mean:.2%}** on average.\n",
        "| corruption | " + " | ".join(map(str, SEVERITIES)) + " |",
        "|---" * (len(SEVERITIES) + 1) + "|",
        *(
            f"| {kind.replace('_', ' ')} | " + " | ".join(f"{100 * share:.1f}" for share in row) + " |"
            for kind, row in found.kinds.items()
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name", type=str.lower, choices=CLASSES)
    args = parser.parse_args()
    try:
        print(ship(args.run, args.name))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
