"""Our training loop against the plain PyTorch loop that a user would write.

    python benchmarks/train_speed.py [--rounds 5] [--steps N] [--networks small large] [--json FILE]

Prints a table (and its Markdown) of images a second, the ratio to the plain loop, and GFLOP/s (6 x MACs x img/s) beside
the float32 matrix-product peak of the same minutes. About eight minutes on two cores. Real CIFAR-10 where
WEIGHTCLASS_DATA names it, else made-up images of its shape.

Same in all: network, batch 128, crop(4) and flip, SGD with Nesterov momentum, one-cycle rate, label smoothing 0.1.
Plain: NCHW, float32, eager, Pillow images one by one through a DataLoader with 0 and with 2 workers; the faster one is
what we are compared with. Ours: what `weightclass train small-cpu` runs, its moving average of the weights included,
which the plain loop does not have.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from weightclass import recipe
from weightclass.data import cifar, sources
from weightclass.data.dataset import Dataset
from weightclass.data.sources import Splits
from weightclass.session import Session
from weightclass.training.checkpoint import Keeper
from weightclass.training.loop import Plan, State, fit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.reference, the network written out by hand

BATCH = 128
EPOCHS = 100
"""Of the plan, so that no training ends while it is timed."""


@dataclass(frozen=True)
class Network:
    """A network of the paper's family and how many steps of it a round can afford."""

    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    steps: int


NETWORKS = {
    "small": Network((2, 2, 2, 2), (16, 32, 64, 128), steps=30),  # 701,466 parameters
    "large": Network((3, 3, 3, 3), (128, 100, 164, 200), steps=2),  # 4,978,810 parameters
}

# --- the plain loop ----------------------------------------------------------------------------------------


class PlainImages(TorchDataset):
    """One image at a time: random crop of 32 with padding 4 and mirror in Pillow, then a normalised float tensor."""

    def __init__(self, data: Dataset) -> None:
        self.pixels = np.ascontiguousarray(data.images.permute(0, 2, 3, 1).numpy())
        self.labels = data.labels.tolist()
        mean, std = data.mean_std()
        self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image, ImageOps

        image = ImageOps.expand(Image.fromarray(self.pixels[index]), border=4)
        left, top = random.randint(0, 8), random.randint(0, 8)
        image = image.crop((left, top, left + 32, top + 32))
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
        return tensor.sub_(self.mean).div_(self.std), self.labels[index]


@dataclass
class Plain:
    """The loop of a thousand tutorials, without their mistake of asking for the loss at every step."""

    network: Network
    images: PlainImages
    workers: int
    note: str = "Pillow, NCHW, float32, eager"

    def __post_init__(self) -> None:
        from tests.reference.plain_resnet import PlainResNet

        layers, channels = len(self.network.blocks), list(self.network.channels)
        self.model = PlainResNet(
            blocks=list(self.network.blocks),
            channels=channels,
            kernels=[3] * layers,
            skip_kernels=[1] * layers,
            pool=4,
            features=channels[-1],
        )
        self.loader = DataLoader(self.images, BATCH, shuffle=True, drop_last=True, num_workers=self.workers)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.2, total_steps=EPOCHS * len(self.loader))

    def speed(self, steps: int) -> float:
        """Images a second over `steps` steps, after one that warms up."""
        self.model.train()
        start, sums, batches = 0.0, torch.zeros(2), self._endless()
        for images, labels in islice(batches, steps + 1):
            logits = self.model(images)
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            sums += torch.stack([loss.detach() * len(labels), (logits.argmax(1) == labels).sum()])
            start = start or time.perf_counter()  # set as the warm-up step ends
        seconds = time.perf_counter() - start
        batches.close()  # its workers end here, and leave the cores to the next
        return steps * BATCH / seconds

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.loader


# --- ours --------------------------------------------------------------------------------------------------


@dataclass
class Stopwatch:
    """A watcher of `fit` that times `steps` steps after the first one, then asks it to stop."""

    steps: int
    times: list[float] = field(default_factory=list)

    def stepped(self, state: State, images: int, waited: float) -> None:
        self.times.append(time.perf_counter())

    def epoch_done(self, state: State, epoch: int, means: tuple[float, float], rate: float) -> None:
        """Nothing is evaluated."""

    def should_stop(self, keeper: Keeper) -> str | None:
        return "timed" if len(self.times) > self.steps else None

    def cut(self, plan: Plan) -> None:
        raise SystemExit("not enough memory to time this")


class Ours:
    """A run of weightclass as `train` starts it, on recipe small-cpu with another network, crop and precision."""

    def __init__(self, network: Network, splits: Splits, precision: str, folder: Path) -> None:
        overrides = (
            f"model.blocks={','.join(map(str, network.blocks))}",
            f"model.channels={','.join(map(str, network.channels))}",
            f"machine.precision={precision}",
            "budget.params=10M",  # no limit on the large network
            "augment.ops=crop(4),flip",  # small-cpu's crop reflects, the plain loop's does not
            "train.drop_last=true",
            f"train.epochs={EPOCHS}",
            f"train.batch_size={BATCH}",
            "machine.device=cpu",
        )
        named = recipe.load("small-cpu", *overrides)
        self.weights = recipe.weigh(named.recipe)
        self.run = Session(named, self.weights, splits, folder / precision, quiet=True)
        average = f"moving average {named.recipe.train.ema}" if named.recipe.train.ema else "no average"
        self.note = f"channels last, {self.run.plan.precision}, {average}"

    def speed(self, steps: int) -> float:
        """Images a second over `steps` steps, after one that warms up."""
        watch = Stopwatch(steps)
        fit(self.run.state, self.run.plan, self.run.batches, self.run.keeper, watch)
        return steps * BATCH / (watch.times[-1] - watch.times[0])


# --- rounds ------------------------------------------------------------------------------------------------


def matmul_peak(side: int = 2048, products: int = 3) -> float:
    """GFLOP/s of a float32 matrix product on all threads: the best of a few."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    torch.mm(a, b)
    seconds = []
    for _ in range(products):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e9


def contenders(network: Network, splits: Splits, folder: Path) -> dict[str, Plain | Ours]:
    """Everyone who runs in each round. "auto" is left out where it decides for float32 itself."""
    images = PlainImages(splits.train)
    ours = {f"ours {precision}": Ours(network, splits, precision, folder) for precision in ("float32", "auto")}
    if ours["ours auto"].run.plan.precision == "float32":
        del ours["ours auto"]
    plain = {f"plain, {workers} workers": Plain(network, images, workers) for workers in (0, 2)}
    counts = {sum(p.numel() for p in model.parameters()) for model in _models(plain, ours)}
    assert len(counts) == 1, f"not the same network: {counts} parameters"
    return {**plain, **ours}


def _models(plain: dict[str, Plain], ours: dict[str, Ours]) -> list[nn.Module]:
    return [*(each.model for each in plain.values()), *(each.run.state.model for each in ours.values())]


def measure(network: Network, splits: Splits, rounds: int, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Interleaved rounds: whatever else the machine does, it does to all."""
    with tempfile.TemporaryDirectory() as folder:
        those = contenders(network, splits, Path(folder))
        weights = next(each.weights for each in those.values() if isinstance(each, Ours))
        speeds: dict[str, list[float]] = {name: [] for name in those}
        peaks = []
        for number in range(rounds):
            for name, each in those.items():
                speeds[name].append(each.speed(steps))
            peaks.append(matmul_peak())
            found = ", ".join(f"{name} {values[-1]:,.1f}" for name, values in speeds.items())
            say(f"{weights.params:,} parameters, round {number + 1}/{rounds}, img/s: {found}; {peaks[-1]:,.0f} GFLOP/s")
        return {
            "params": weights.params,
            "macs": weights.macs,
            "steps": steps,
            "peak_gflops": peaks,
            "images_per_second": speeds,
            "notes": {name: each.note for name, each in those.items()},
        }


HEADER = ("parameters", "loop", "img/s", "ratio to plain", "GFLOP/s", "of the peak", "how")


def rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a contender; ratios are taken round by round against the plain loop with the higher median."""
    speeds, peaks = found["images_per_second"], found["peak_gflops"]
    plain = max((name for name in speeds if name.startswith("plain")), key=lambda name: statistics.median(speeds[name]))
    table = []
    for name, values in speeds.items():
        gflops = [6 * found["macs"] * value / 1e9 for value in values]
        shares = [100 * rate / peak for rate, peak in zip(gflops, peaks, strict=True)]
        ratios = [value / base for value, base in zip(values, speeds[plain], strict=True)]
        ratio = "1 (what counts)" if name == plain else spread(ratios, ".2f")
        cells = (spread(values, ",.1f"), ratio, f"{statistics.median(gflops):,.0f}")
        share = f"{min(shares):.0f}-{max(shares):.0f} %"
        table.append((f"{found['params']:,}", name, *cells, share, found["notes"][name]))
    return table


def spread(values: list[float], style: str) -> str:
    """`median (least..most)`."""
    return f"{statistics.median(values):{style}} ({min(values):{style}}..{max(values):{style}})"


def show(results: list[dict[str, Any]], title: str) -> None:
    """The table on the terminal, then the same as Markdown to paste."""
    from rich.table import Table

    from weightclass.runlog import console

    body = [row for found in results for row in rows(found)]
    grid = Table(title=title, title_justify="left")
    for name in HEADER:
        grid.add_column(name)
    for row in body:
        grid.add_row(*row)
    console().print(grid)
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ("---",) * len(HEADER), *body)]
    print("\n" + "\n".join(lines))


def load_splits() -> tuple[Splits, str]:
    """CIFAR-10 where WEIGHTCLASS_DATA names it, else 10,000 random images; and which of the two."""
    if os.environ.get("WEIGHTCLASS_DATA"):
        return sources.load(sources.Data(name="cifar10")), "CIFAR-10"
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(10_000) % 10
    made_up = Dataset(images, labels, cifar.CIFAR10.names)
    return Splits(made_up, None, made_up.subset(torch.arange(100))), "random images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, help="timed steps a round; default: 30 of the small network, 2 of the large"
    )
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--json", type=Path, help="write every round's numbers here")
    args = parser.parse_args()
    splits, source = load_splits()
    say = partial(print, flush=True)
    results = []
    for name in args.networks:
        network = NETWORKS[name]
        results.append(measure(network, splits, args.rounds, args.steps or network.steps, say))
    threads = torch.get_num_threads()
    title = f"Training on {source}, batch {BATCH}, {threads} threads, torch {torch.__version__}: median of "
    title += f"{args.rounds} rounds (least..most); peak: a float32 matrix product in the same rounds"
    show(results, title)
    if args.json:
        facts = {"data": source, "threads": threads, "torch": torch.__version__, "results": results}
        args.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
