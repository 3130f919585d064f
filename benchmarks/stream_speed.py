"""Training on a set three times larger than the memory it may take, against the same set in memory.

    python benchmarks/stream_speed.py [--rounds 7] [--steps 20] [--size 64]

The images (CIFAR-10 enlarged where WEIGHTCLASS_DATA names it, else made-up ones) lie in a raw file, memory-mapped, as a
decoded folder's do. Three ways take turns: in memory; streamed with the file in the system's page cache; streamed with
its pages thrown out before every round, so that they come from the disk (where the system lets us: Linux). Prints
images a second of the training and of the loader alone, with the ratio to memory, and how much memory each way took.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import re
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from weightclass import recipe
from weightclass.data import sources
from weightclass.data.dataset import Dataset
from weightclass.data.loader import Loader
from weightclass.data.sources import Found, Splits
from weightclass.data.store import Stored
from weightclass.session import Session
from weightclass.training.loop import training_step

BATCH = 128
WAYS = ("in memory", "streamed", "streamed from disk")


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as work:
        file = Path(work, "images.bin")
        stored = written(file, options.size, options.images)
        bytes_ = stored.images.nbytes
        sessions = {way: session(stored, Path(work, way), bytes_ if way == WAYS[0] else bytes_ // 3) for way in WAYS}
        print(f"{len(stored):,} images of {options.size}x{options.size}, {bytes_ / 1e6:,.0f} MB")
        print(f"allowed to the streamed ways: {bytes_ / 3e6:,.0f} MB; {sessions[WAYS[0]].computed_on}")
        training: dict[str, list[float]] = {way: [] for way in WAYS}
        loading: dict[str, list[float]] = {way: [] for way in WAYS}
        for round_ in range(-1, options.rounds):  # the first one warms up
            for way, one in sessions.items():
                speeds = []
                for measure in (train, load):
                    if way == WAYS[2]:
                        forget(stored.images, file)
                    speeds.append(measure(one, options.steps, round_ + 1))
                if round_ >= 0:
                    training[way].append(speeds[0])
                    loading[way].append(speeds[1])
    report(training, loading)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="of training, a round; the loader alone does as many")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=50_000)
    return parser.parse_args()


def written(file: Path, size: int, count: int) -> Dataset:
    """The set in `file`, made piece by piece."""
    if os.environ.get("WEIGHTCLASS_DATA"):
        small = sources.load(sources.Data(name="cifar10")).train
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (5000, 3, 32, 32), np.uint8)
        small = Dataset(torch.from_numpy(pixels), torch.arange(5000) % 10, tuple("0123456789"))
    chosen = torch.arange(count) % len(small)
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for indices in chosen.split(1000):
            large = F.interpolate(small.images[indices].float(), (size, size), mode="bilinear").byte().numpy()
            digest.update(large.tobytes())
            out.write(large.tobytes())
        out.flush()
        os.fsync(out.fileno())
    return Dataset(Stored(file, (count, 3, size, size), digest.hexdigest()), small.labels[chosen], small.classes)


def session(dataset: Dataset, folder: Path, memory: int) -> Session:
    """What `train folder` would run, with `memory` bytes for the images."""
    named = recipe.load("small-cpu", "model.pool=global", f"train.batch_size={BATCH}", f"machine.memory={memory}")
    few = dataset.subset(torch.arange(100))
    found = Found(dataset.image_shape, len(dataset.classes), lambda _: Splits(dataset, None, few))
    before = anonymous()
    one = Session(named, recipe.weigh(named.recipe, found), found.load(None), folder, quiet=True)
    how, taken = "streams" if one.loader.streams else "holds all", (anonymous() - before) / 1e6
    print(f"{folder.name}: {how}, {taken:,.0f} MB of memory")
    return one


def anonymous() -> int:
    """Bytes of memory that cannot be taken back by the system, 0 where it does not tell."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return 1024 * int(re.findall(r"RssAnon:\s*(\d+)", text)[0])


def forget(stored: Stored, file: Path) -> None:
    """Throw the file's pages out of the map and out of the page cache, where the system lets us."""
    if hasattr(os, "posix_fadvise"):
        stored._pixels.base._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[union-attr]
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def train(one: Session, steps: int, epoch: int) -> float:
    """Images a second of whole training steps."""
    started = time.perf_counter()
    for batch in islice(one.batches(epoch, 0), steps):
        training_step(one.state, one.plan, batch, one.state.model)
    return steps * BATCH / (time.perf_counter() - started)


def load(one: Session, steps: int, epoch: int) -> float:
    """Images a second of the loader alone."""
    loader: Loader = one.loader
    started = time.perf_counter()
    for _ in islice(loader.epoch(epoch + 1000), steps):
        pass
    return steps * BATCH / (time.perf_counter() - started)


def report(training: dict[str, list[float]], loading: dict[str, list[float]]) -> None:
    print("\n| images | training, img/s | ratio to memory | loader alone, img/s |\n|---|---|---|---|")
    for way in WAYS:
        ratios = [ours / theirs for ours, theirs in zip(training[way], training[WAYS[0]], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
        speeds = f"{statistics.median(training[way]):,.0f} | {spread} | {statistics.median(loading[way]):,.0f}"
        print(f"| {way} | {speeds} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
