"""`sprint-94` against airbench94 (Muon), rebuilt plainly for the CPU: time to a trained network, at what accuracy.

    python benchmarks/sprint_speed.py [--rounds 2] [--recipe sprint-94] [--threads 2] [--json FILE]

The sides take turns, each in a process of its own, with the same threads and a new seed each round; the time is that
of the whole process: start-up, compilation, reading CIFAR-10 (WEIGHTCLASS_DATA), training, judging once. The plain side
(tests/reference/plain_airbench.py) trains in channels last, and in bfloat16 autocast where trial steps show that to be
faster. Accuracy is the test set's, of one look and of airbench's six views for both. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for tests.reference, the network written out by hand

SIDES = ("plain", "ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--recipe", default="sprint-94")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        torch.set_num_threads(asked.threads)
        told = plain(asked.seed) if asked.side == "plain" else ours(asked.recipe, asked.threads, asked.seed)
        print(json.dumps(told))
        return
    rows = [timed(side, asked, seed) for seed in range(asked.rounds) for side in SIDES]
    print(table(rows))
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def timed(side: str, asked: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One training in a process of its own, and its wall-clock seconds up to its first scorecard."""
    command = [sys.executable, __file__, "--side", side, "--seed", str(seed)]
    command += ["--recipe", asked.recipe, "--threads", str(asked.threads)]
    started = time.time()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    told = json.loads(done.stdout.splitlines()[-1])
    row = {"side": side, "seed": seed, "seconds": told.pop("ended") - started, **told}
    print(
        f"{side}, seed {seed}: {row['seconds']:.0f} s, {row['accuracy']:.2%}, six views {row['views']:.2%}", flush=True
    )
    return row


def plain(seed: int) -> dict[str, Any]:
    from tests.reference import plain_airbench
    from weightclass.data import sources

    torch.manual_seed(seed)
    splits = sources.load(sources.Data(name="cifar10"))
    images, labels, test = splits.train.images, splits.train.labels, splits.test
    assert test is not None
    half = plain_airbench.pays(images[: plain_airbench.BATCH])
    network = plain_airbench.train(images, labels, half=half)
    accuracy = plain_airbench.accuracy(network, test.images, test.labels, views=False)
    ended = time.time()
    views = plain_airbench.accuracy(network, test.images, test.labels, views=True)
    return {"ended": ended, "accuracy": accuracy, "views": views, "bfloat16": half}


def ours(recipe: str, threads: int, seed: int) -> dict[str, Any]:
    import weightclass as wc
    from weightclass import judge, modelfile

    with tempfile.TemporaryDirectory() as folder:
        settings = (f"train.seed={seed}", f"machine.threads={threads}")
        outcome = wc.train(recipe, *settings, out=folder, quiet=True)
        ended = time.time()
        assert outcome.result
        classifier = modelfile.load(outcome.folder)
        cards = judge.scorecards(classifier, judge.labelled(classifier), views=True)
        facts = {"ended": ended, "accuracy": outcome.result.scorecard.accuracy, "views": cards["flip+shift"].accuracy}
        return facts | {"pflops": outcome.result.train_pflops, "computed_on": outcome.result.computed_on}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: each side's runs and, last, the ratio of the median times."""
    lines = ["| side | seed | seconds | accuracy | six views |", "|---|---|---|---|---|", *map(_line, rows)]
    middle = {side: statistics.median(row["seconds"] for row in rows if row["side"] == side) for side in SIDES}
    return "\n".join(lines) + f"\n\nours takes {middle['ours'] / middle['plain']:.2f}x the time\n"


def _line(row: dict[str, Any]) -> str:
    return f"| {row['side']} | {row['seed']} | {row['seconds']:.0f} | {row['accuracy']:.2%} | {row['views']:.2%} |"


if __name__ == "__main__":
    main()
