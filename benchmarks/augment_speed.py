"""Our augmentation of whole batches against the image-by-image pipeline that a user would write with torchvision.

    python benchmarks/augment_speed.py [--rounds 5] [--seconds 0.7] [--batch 512 128] [--threads 1 2] [--json FILE]
    python benchmarks/augment_speed.py --device cuda [--batch 512 1024 4096]

Prints images a second of the paper's training pipeline (AutoAugment's CIFAR-10 policy, crop(4), flip, perspective(0.6)
for every other image, normalise), from uint8 images in memory to a float32 batch, and the time that each operation
takes alone. About two minutes on two cores. Real CIFAR-10 where WEIGHTCLASS_DATA names it, else noise of its shape.

Plain: torchvision does not import beside our torch, so this does what its transforms do to Pillow images, call for call
(tests/reference/plain_policies.py, and here its random draws, to-tensor and normalise), through a DataLoader in the
same process and, with two threads, also with two workers; the faster one is what we are compared with.
kornia, where it is installed: its AutoAugment draws one sub-policy a batch, so for a policy an image it is called image
by image, and its other operations on the batch; beside it the whole batch in one call, which is less than was asked.
On CUDA: ours alone, eager and compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from weightclass.augment.pipeline import Augment, Pipeline, check
from weightclass.batching import Batch
from weightclass.data import cifar, sources
from weightclass.data.dataset import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.reference, the slow plain twin

from tests.reference import plain_policies as plain

OPERATIONS = ("autoaugment", "crop(4)", "flip", "perspective(0.6)")

# --- ours --------------------------------------------------------------------------------------------------


def pipeline_of(operations: tuple[str, ...], data: Dataset, where: str, compiled: bool = False) -> Pipeline:
    """As a training run makes it."""
    parsed, classes = check(Augment(ops=operations), data.image_shape), len(data.classes)
    return Pipeline(parsed, *data.mean_std(), 0, torch.device(where), data.image_shape, classes, compiled)


def batches_of(data: Dataset, batch: int) -> Iterator[Batch]:
    """Endless batches in random order, on the images' device."""
    slots = torch.arange(batch, device=data.labels.device)
    while True:
        order = torch.randperm(len(data)).to(data.labels.device)
        for chosen in order.split(batch)[: len(data) // batch]:
            yield Batch(data.images.index_select(0, chosen), data.labels.index_select(0, chosen), slots, chosen)


def ours(pipeline: Pipeline, data: Dataset, batch: int) -> Iterator[int]:
    for step, one in enumerate(batches_of(data, batch)):
        yield len(pipeline.normalise(pipeline.augment(one, 0, step).images))


# --- image by image, in Pillow -----------------------------------------------------------------------------


def below(size: int) -> int:
    """A whole number from 0 to size - 1, as torchvision draws it."""
    return int(torch.randint(0, size, size=(1,)).item())


def autoaugment(image: Image.Image) -> Image.Image:
    policy = plain.AUTOAUGMENT["cifar10"]
    number, chances, signs = below(len(policy)), torch.rand((2,)), torch.randint(2, (2,))
    happens = [bool(chance <= p) for chance, (_, p, _) in zip(chances, policy[number], strict=True)]
    return plain.autoaugment(image, "cifar10", number, happens, (signs == 0).tolist())


def crop(image: Image.Image) -> Image.Image:
    down, right = below(9) - 4, below(9) - 4
    return plain.crop(image, down, right, padding=4)


def flip(image: Image.Image) -> Image.Image:
    return plain.flip(image) if torch.rand(1) < 0.5 else image


def perspective(image: Image.Image, scale: float = 0.6) -> Image.Image:
    if torch.rand(1) >= 0.5:
        return image
    w, h = image.size
    right, down = int(scale * (w // 2)) + 1, int(scale * (h // 2)) + 1
    corners = ((0, 0), (w - right, 0), (w - right, h - down), (0, h - down))  # each corner's least x and y
    return plain.perspective(image, [[left + below(right), top + below(down)] for left, top in corners])


def to_tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image, np.uint8, copy=True)).view(image.height, image.width, 3)
    return pixels.permute((2, 0, 1)).contiguous().to(torch.float32).div(255)


def normalise(tensor: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    tensor = tensor.clone()
    means, stds = torch.as_tensor(mean, dtype=torch.float32), torch.as_tensor(std, dtype=torch.float32)
    if (stds == 0).any():
        raise ValueError("a standard deviation of zero")
    return tensor.sub_(means.view(-1, 1, 1)).div_(stds.view(-1, 1, 1))


class PlainImages(TorchDataset):
    """torchvision's CIFAR10 with the transforms composed."""

    def __init__(self, data: Dataset) -> None:
        self.pixels = np.ascontiguousarray(data.images.permute(0, 2, 3, 1).numpy())
        self.labels = data.labels.tolist()
        self.mean, self.std = data.mean_std()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.pixels[index])
        for transform in (autoaugment, crop, flip, perspective):
            image = transform(image)
        return normalise(to_tensor(image), self.mean, self.std), self.labels[index]


def pillow(images: PlainImages, batch: int, workers: int) -> Iterator[int]:
    while True:
        for tensors, _ in DataLoader(images, batch, shuffle=True, drop_last=True, num_workers=workers):
            yield len(tensors)


# --- kornia ------------------------------------------------------------------------------------------------


def kornia(data: Dataset, batch: int, policy_an_image: bool) -> Iterator[int]:
    """From float images in 0..1, as kornia wants them."""
    import kornia.augmentation as K
    from kornia.augmentation.auto import AutoAugment

    policy, side = AutoAugment(policy="cifar10"), data.image_shape[1]
    mean, std = map(torch.tensor, data.mean_std())
    moved = (K.RandomCrop((side, side), padding=4), K.RandomHorizontalFlip(), K.RandomPerspective(0.6, p=0.5))
    for one in batches_of(data, min(batch, 128) if policy_an_image else batch):
        images = one.images.float() / 255
        images = torch.cat([policy(image) for image in images.split(1)]) if policy_an_image else policy(images)
        for transform in (*moved, K.Normalize(mean, std)):
            images = transform(images)
        yield len(images)


# --- rounds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """Who makes batches: an endless stream of their sizes, and how many of them to take at a time (one a worker)."""

    name: str
    stream: Callable[[], Iterator[int]]
    together: int = 1

    def speed(self, seconds: float, where: str) -> float:
        """Images a second, after `together` batches that warm up."""
        batches, settle = self.stream(), torch.cuda.synchronize if where == "cuda" else int
        sum(islice(batches, self.together))
        settle()
        started, images = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            images += sum(islice(batches, self.together))
        settle()
        took = time.perf_counter() - started
        batches.close()  # type: ignore[attr-defined]  # a DataLoader's workers end here, and leave the cores to the next
        return images / took


def contenders(data: Dataset, where: str, batch: int, threads: int) -> list[Contender]:
    """Everyone who runs in each round."""
    pipeline = pipeline_of(OPERATIONS, data, where)
    found = [Contender("ours", partial(ours, pipeline, data, batch))]
    if where != "cpu":
        compiled = pipeline_of(OPERATIONS, data, where, compiled=True)
        return [*found, Contender("ours, compiled", partial(ours, compiled, data, batch))]
    plain_images = PlainImages(data)
    found += [
        Contender(f"plain, {workers} workers", partial(pillow, plain_images, batch, workers), workers or 1)
        for workers in ((0,) if threads == 1 else (0, 2))
    ]
    if has_kornia():
        found += [
            Contender(f"kornia, a policy {'an image' if each else 'a batch'}", partial(kornia, data, batch, each))
            for each in (True, False)
        ]
    return found


def has_kornia() -> bool:
    try:
        import kornia.augmentation.auto  # noqa: F401
    except ImportError:
        return False
    return True


def measure(data: Dataset, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Interleaved rounds: whatever else the machine does, it does to all."""
    results = []
    for threads in options.threads:
        for batch in options.batch:
            those = contenders(data, options.device, batch, threads)
            results.append({"threads": threads, "batch": batch, "those": those, "speeds": {c.name: [] for c in those}})
    for number in range(options.rounds):
        for found in results:
            torch.set_num_threads(found["threads"])
            for one in found["those"]:
                found["speeds"][one.name].append(one.speed(options.seconds, options.device))
            speeds = ", ".join(f"{name} {values[-1]:,.0f}" for name, values in found["speeds"].items())
            print(f"round {number + 1}/{options.rounds}, {of(found)}, img/s: {speeds}", flush=True)
    for found in results:
        del found["those"]
    return results


def of(found: dict[str, Any]) -> str:
    return f"{found['threads']} threads, batch {found['batch']}"


def parts(data: Dataset, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Microseconds an image that each operation takes alone, ours and plain, on one thread: an entry a round."""
    torch.set_num_threads(1)
    batch = options.batch[0]
    named = {operation.partition("(")[0]: pipeline_of((operation,), data, "cpu") for operation in OPERATIONS}
    one = next(batches_of(data, batch))
    mine: dict[str, Callable[[int], object]] = {"read": partial(_next, batches_of(data, batch))}
    mine |= {name: partial(pipeline.augment, one, 0) for name, pipeline in named.items()}
    mine["normalise"] = lambda step: named["flip"].normalise(one.images)
    theirs = _plain_parts(PlainImages(data.subset(one.indices)))
    found: dict[str, dict[str, list[float]]] = {name: {"ours": [], "plain": []} for name in theirs}
    for _ in range(options.rounds):
        for name in found:
            if name in mine:
                found[name]["ours"].append(_microseconds(mine[name], options.seconds / 4) / batch)
            found[name]["plain"].append(_microseconds(theirs[name], options.seconds / 4) / batch)
    return found


def _plain_parts(images: PlainImages) -> dict[str, Callable[[int], object]]:
    """Each does a whole batch, image by image."""
    opened = [Image.fromarray(pixels) for pixels in images.pixels]
    tensors = [to_tensor(image) for image in opened]
    edits = {"autoaugment": autoaugment, "crop": crop, "flip": flip, "perspective": perspective}
    found: dict[str, Callable[[int], object]] = {
        "read": lambda _: [Image.fromarray(pixels) for pixels in images.pixels]
    }
    found |= {name: lambda _, edit=edit: [edit(image) for image in opened] for name, edit in edits.items()}
    found["to tensor"] = lambda _: [to_tensor(image) for image in opened]
    found["normalise"] = lambda _: [normalise(tensor, images.mean, images.std) for tensor in tensors]
    found["collate"] = lambda _: torch.stack(tensors)
    return found


def _next(batches: Iterator[Batch], step: int) -> Batch:
    return next(batches)


def _microseconds(work: Callable[[int], object], seconds: float) -> float:
    """Of a call; one call warms up."""
    work(0)
    started = time.perf_counter()
    for step in count(1):
        work(step)
        if (took := time.perf_counter() - started) > seconds:
            return 1e6 * took / step
    raise AssertionError("unreachable")


# --- tables ------------------------------------------------------------------------------------------------


def speed_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a contender; ratios are taken round by round against the plain pipeline with the higher median."""
    speeds = found["speeds"]
    base = max((n for n in speeds if n.startswith("plain")), key=lambda n: statistics.median(speeds[n]), default="ours")
    table = []
    for name, values in speeds.items():
        ratios = [value / other for value, other in zip(values, speeds[base], strict=True)]
        ratio = "1 (what counts)" if name == base else spread(ratios, ",.2f")
        cost = f"{1e6 / statistics.median(values):,.1f}"
        table.append((str(found["threads"]), str(found["batch"]), name, spread(values, ",.0f"), cost, ratio))
    return table


def part_rows(found: dict[str, dict[str, list[float]]]) -> list[tuple[str, ...]]:
    return [
        (name, *(spread(both[who], ",.2f") if both[who] else "" for who in ("ours", "plain")))
        for name, both in found.items()
    ]


def spread(values: list[float], style: str) -> str:
    """`median (least..most)`."""
    return f"{statistics.median(values):{style}} ({min(values):{style}}..{max(values):{style}})"


def show(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A Markdown table to read and to paste."""
    print(f"\n{title}\n")
    for row in (header, ("---",) * len(header), *rows):
        print("| " + " | ".join(row) + " |")


def load_images() -> tuple[Dataset, str]:
    """CIFAR-10's training images where WEIGHTCLASS_DATA names it, else 10,000 images of noise; and which of the two."""
    if os.environ.get("WEIGHTCLASS_DATA"):
        return sources.load(sources.Data(name="cifar10")).train, "CIFAR-10"
    images = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Dataset(images, torch.arange(10_000) % 10, cifar.CIFAR10.names), "noise"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.7, help="that each contender works in each round")
    parser.add_argument("--batch", type=int, nargs="+", help="default: 512 128, on CUDA 512 1024 4096")
    parser.add_argument("--threads", type=int, nargs="+", help="default: 1 2")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write every round's numbers here")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    options.batch = options.batch or ([512, 128] if on_cpu else [512, 1024, 4096])
    options.threads = options.threads or ([1, 2] if on_cpu else [torch.get_num_threads()])
    return options


def main() -> None:
    options = arguments()
    torch.empty(31 * 2**20, dtype=torch.uint8)  # as a run does (device.apply); all who run here gain by it
    data, source = load_images()
    data = data.to(torch.device(options.device))
    if options.device == "cpu" and not has_kornia():
        print("kornia is not installed: left out")
    results = measure(data, options)
    facts = f"{source}, {options.device}, torch {torch.__version__}, median of {options.rounds} rounds (least..most)"
    header = ("threads", "batch", "pipeline", "img/s", "us an image", "ratio")
    show(f"{' '.join(OPERATIONS)} normalise: {facts}", header, [row for found in results for row in speed_rows(found)])
    alone = parts(data, options) if options.device == "cpu" else {}
    if alone:
        title = f"Microseconds an image that each part takes alone, one thread, batch {options.batch[0]}"
        show(title, ("part", "ours", "plain"), part_rows(alone))
    if options.json:
        numbers = {"data": source, "torch": torch.__version__, "results": results, "parts_us": alone}
        options.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
