"""A short visit to a machine with a GPU, stage by stage: check it, profile training, train, bring the weights home.

    python benchmarks/gpu_session.py smoke
    python benchmarks/gpu_session.py profile [table.key=value ...] --data DIR --out DIR [--time-limit 9m]
    python benchmarks/gpu_session.py train RECIPE [table.key=value ...] --data DIR --out DIR [--from DIR]
    python benchmarks/gpu_session.py restore DIR --runs DIR

smoke prints the versions found and trains 20 steps. profile prints, and writes as profile.json, images/s, TFLOP/s
(6 x MACs x img/s), augmentation's share and peak memory of recipe paper-97 by batch, precision and compilation. train
stops a minute before the limit and leaves in --out at most 8 files below 16 MiB: weights-fp16.safetensors (itself a
model file where the run has finished), result.json, metrics.jsonl, and of an unfinished run all that it needs to go
on, in parts; restore, or train's --from, joins them again. docs/gpu.md tells the sequence.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import io
import itertools
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STARTED = time.monotonic()
WORK = Path(tempfile.gettempdir()) / "weightclass-gpu"
"""Runs and compiled kernels stay here between the commands of one visit."""

MIB = 2**20
PART = 16 * MIB - 1
MOST_FILES = 8
RESERVE = 60.0
"""Seconds of a command's limit kept back for scoring, copying and the end of the process."""

# --- bringing a run home, and back -------------------------------------------------------------------------


def bring_back(folder: Path, out: Path, part: int = PART) -> list[Path]:
    """Copy what matters of a run folder to `out`, no file larger than `part` bytes. Raises UserError for too many."""
    from weightclass.errors import UserError
    from weightclass.results import FILE_NAME

    out.mkdir(parents=True, exist_ok=True)
    write_half(folder, out / "weights-fp16.safetensors")
    for name in (FILE_NAME, "metrics.jsonl", "environment.json"):
        if (folder / name).exists():
            shutil.copy(folder / name, out / name)
    if not (folder / FILE_NAME).exists():
        split(packed(folder), out, part)
    files = sorted(out.iterdir())
    large = [path.name for path in files if path.stat().st_size > part]
    if large or len(files) > MOST_FILES:
        raise UserError(
            f"{out}: {len(files)} files, too large: {large or 'none'}; {MOST_FILES} of {part:,} bytes come back"
        )
    return files


def newest_checkpoint(folder: Path) -> Path:
    """Checkpoints are named by their step first."""
    from weightclass.errors import UserError

    found = sorted((folder / "checkpoint").glob("*.safetensors"))
    if not found:
        raise UserError(f"{folder}: neither a model nor a checkpoint in it: the run was stopped before its first step")
    return found[-1]


def write_half(folder: Path, path: Path) -> None:
    """The run's weights, averaged where it averages, float16 but for norms and biases; the header is kept."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from weightclass.modelfile import FILE_NAME

    finished = (folder / FILE_NAME).exists()
    with safe_open(folder / FILE_NAME if finished else newest_checkpoint(folder), "pt") as handle:
        header = handle.metadata()
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    if not finished:
        prefix = "average/" if any(name.startswith("average/") for name in tensors) else "model/"
        tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    save_file({name: halved(tensor) for name, tensor in tensors.items()}, path, header)


def halved(tensor: Tensor) -> Tensor:
    """float16, but for vectors: they are few, and a small variance would lose digits."""
    return tensor.half() if tensor.ndim > 1 and tensor.is_floating_point() else tensor


def packed(folder: Path) -> bytes:
    """A tar of the newest checkpoint and the small files that a run needs to go on, below the folder's own name."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path in (
            *(folder / n for n in ("recipe.toml", "environment.json", "metrics.jsonl")),
            newest_checkpoint(folder),
        ):
            if path.exists():
                tar.add(path, f"{folder.name}/{path.relative_to(folder).as_posix()}")
    return stream.getvalue()


def split(payload: bytes, out: Path, part: int = PART) -> None:
    """Write `payload` as run-HASH.tar.1-of-N ..., HASH being the head of its SHA-256."""
    pieces = [payload[start : start + part] for start in range(0, len(payload), part)]
    digest = hashlib.sha256(payload).hexdigest()[:16]
    for number, piece in enumerate(pieces, start=1):
        (out / f"run-{digest}.tar.{number}-of-{len(pieces)}").write_bytes(piece)


def restore(parts: Path, runs: Path) -> Path:
    """Join the parts in a folder and unpack the run folder below `runs`; returns it. UserError where one is lost."""
    from weightclass.errors import UserError

    named = [
        (path, re.fullmatch(r"run-([0-9a-f]{16})\.tar\.(\d+)-of-(\d+)", path.name)) for path in parts.glob("run-*")
    ]
    found = {int(match[2]): (path, match[1], int(match[3])) for path, match in named if match}
    if not found or set(found) != set(range(1, next(iter(found.values()))[2] + 1)):
        raise UserError(f"{parts}: holds parts {sorted(found)} of a run, not all of them: fetch the rest")
    payload = b"".join(found[number][0].read_bytes() for number in sorted(found))
    if {digest for _, digest, _ in found.values()} != {hashlib.sha256(payload).hexdigest()[:16]}:
        raise UserError(f"{parts}: the parts do not make up the file they were cut from: fetch them anew")
    runs.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(payload)) as tar:
        name = tar.getnames()[0].partition("/")[0]
        for member in tar:  # by hand: extractall's filter came with Python 3.11.4
            target = (runs / member.name).resolve()
            if member.isfile() and target.is_relative_to((runs / name).resolve()):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    return runs / name


# --- train -------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    """Start, or go on with, a run in the temporary folder; then bring it back."""
    from weightclass import run
    from weightclass.config import parse_duration
    from weightclass.errors import UserError

    runs = args.work / "runs"
    if args.shards:
        print(f"restored {restore(args.shards, runs)}")
    left = parse_duration(args.time_limit) - RESERVE - (time.monotonic() - STARTED)
    if left <= 0:
        raise UserError(f"--time-limit {args.time_limit}: nothing is left of it, {RESERVE:g} s are kept for the end")
    outcome = run.train(args.recipe, *args.overrides, *on(args.device), out=runs, time_limit=left)
    for path in bring_back(outcome.folder, args.out):
        print(f"{path.stat().st_size:>12,}  {path}")


def on(device: str) -> list[str]:
    """The override that names a device, unless the recipe is to choose."""
    return [] if device == "auto" else [f"machine.device={device}"]


# --- profile -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One way to compute the same training."""

    batch: int
    precision: str
    compile: str


def profile(args: argparse.Namespace) -> None:
    """Every setting in turn until the time is up; the file is written after each, so that nothing is lost."""
    from weightclass.config import parse_duration

    deadline = STARTED + parse_duration(args.time_limit) - RESERVE
    args.out.mkdir(parents=True, exist_ok=True)
    splits = load_splits(args.data)
    results: list[dict[str, Any]] = []
    for compile_, precision, batch in itertools.product(args.compile, args.precisions, args.batches):
        setting = Setting(batch, precision, compile_)
        if time.monotonic() > deadline:
            print(f"no time is left for {setting}")
            continue
        try:
            found = measure(setting, splits, args, detail=args.out / "operations.txt" if not results else None)
        except Exception as error:  # out of memory, a compiler that fails: the others still count
            found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        results.append(asdict(setting) | found)
        print(json.dumps(results[-1]))
        (args.out / "profile.json").write_text(
            json.dumps(facts() | {"results": results}, indent=2) + "\n", encoding="utf-8"
        )
        gc.collect()
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    show(results)


def facts() -> dict[str, Any]:
    """Where this was measured."""
    from weightclass import device

    return {**device.environment(), "bfloat16_matmul_tflops": matmul_peak() if torch.cuda.is_available() else None}


def matmul_peak(side: int = 8192, products: int = 10) -> float:
    """TFLOP/s of a bfloat16 matrix product on the GPU: what there is to be had."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    torch.mm(a, b)
    return 2 * side**3 / timed(lambda: torch.mm(a, b), products) / 1e12


def load_splits(data: Path | None) -> Any:
    """CIFAR-10 in `data`; without it made-up images, which train as fast."""
    from weightclass.data import cifar, sources
    from weightclass.data.dataset import Dataset

    if data:
        return sources.load(sources.Data(name="cifar10", path=str(data)))
    images = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8)
    made_up = Dataset(images, torch.arange(len(images)) % 10, cifar.CIFAR10.names)
    return sources.Splits(made_up, None, made_up)


def measure(setting: Setting, splits: Any, args: argparse.Namespace, detail: Path | None) -> dict[str, Any]:
    """The numbers of one setting: a real run's own parts, timed for about `args.seconds`."""
    from weightclass import device
    from weightclass.training.loop import training_step

    with tempfile.TemporaryDirectory() as folder:
        run = open_run(setting, splits, args, Path(folder))
        batches = endless(run.batches)
        forward = torch.compile(run.state.model) if run.plan.compile else run.state.model
        run.state.model.train()

        def step() -> None:
            training_step(run.state, run.plan, next(batches), forward)

        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        warm_up = timed(step, 1) + timed(step, 4) * 4  # compiles, lets cuDNN choose its algorithms
        steps = max(2, int(args.seconds / timed(step, 2)))
        seconds = timed(step, steps)
        alone = timed(lambda: next(batches), steps)
        if detail:
            detail.write_text(operations(step, run.device), encoding="utf-8")
        speed = setting.batch / seconds
        return {
            "device": str(run.device),
            "steps": steps,
            "warm_up_seconds": round(warm_up, 1),
            "images_per_second": round(speed, 1),
            "tflops": round(6 * run.weights.macs * speed / 1e12, 3),
            "augmentation": round(alone / seconds, 4),
            "peak_memory": device.peak_memory(run.device),
        }


def open_run(setting: Setting, splits: Any, args: argparse.Namespace, folder: Path) -> Any:
    """Recipe paper-97 under `setting`, started as `train` starts it."""
    from weightclass import recipe
    from weightclass.session import Session

    named = recipe.load(
        "paper-97",
        *args.overrides,
        *on(args.device),
        f"train.batch_size={setting.batch}",
        f"machine.precision={setting.precision}",
        f"machine.compile={setting.compile}",
        "train.drop_last=true",  # a smaller batch would be compiled anew
    )
    own = folder / f"{setting.batch}-{setting.precision}-{setting.compile}"  # a folder keeps its first decisions
    return Session(named, recipe.weigh(named.recipe), splits, own, quiet=True)


def endless(batches: Callable[[int, int], Iterator[Any]]) -> Iterator[Any]:
    for epoch in itertools.count():
        yield from batches(epoch, 0)


def timed(work: Callable[[], Any], times: int) -> float:
    """Seconds of one call, the device idle at both ends."""
    wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - start) / times


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def operations(step: Callable[[], None], device: torch.device, steps: int = 5) -> str:
    """torch.profiler's table of the 25 dearest operations of a step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with watch(activities=kinds) as watched:
        timed(step, steps)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return watched.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)


def show(results: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    from weightclass.runlog import console, human_bytes

    grid = Table(box=box.MARKDOWN, title="paper-97, training", title_justify="left")
    for column in ("batch", "precision", "compiled", "img/s", "TFLOP/s", "augmentation", "peak memory", "warm-up"):
        grid.add_column(column)
    for row in results:
        how = (str(row["batch"]), row["precision"], row["compile"])
        if "error" in row:
            grid.add_row(*how, row["error"])
            continue
        numbers = (f"{row['images_per_second']:,.0f}", f"{row['tflops']:.2f}", f"{row['augmentation']:.1%}")
        grid.add_row(*how, *numbers, human_bytes(row["peak_memory"]), f"{row['warm_up_seconds']:.0f} s")
    console().print(grid)


# --- smoke -------------------------------------------------------------------------------------------------

NEEDED = ("torch", "numpy", "safetensors", "msgspec", "tomli-w", "click", "filelock", "rich", "pooch", "matplotlib")
NEEDED += ("scikit-learn",)


def smoke(args: argparse.Namespace) -> None:
    """What is installed, and 20 steps of quickstart from images to result."""
    for name in NEEDED:
        try:
            print(f"{name:>14} {version(name)}")
        except PackageNotFoundError:
            print(f"{name:>14} missing")
    print(f"{'CUDA':>14} {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no device'}")
    run = importlib.import_module("weightclass.run")
    twenty = ("train.epochs=1", "train.batch_size=71", "train.drop_last=true")  # 1,437 images
    with tempfile.TemporaryDirectory() as folder:
        run.train("quickstart", *twenty, *on(args.device), out=folder)


# --- the door ----------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole.set_defaults(stage=lambda _: whole.print_help())  # no stage: nothing to do without such a machine
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    common.add_argument("--work", type=Path, default=WORK, help=f"runs and compiled kernels; {WORK}")
    common.add_argument("--data", type=Path, help="the official CIFAR-10 folder")
    stages = whole.add_subparsers()

    stages.add_parser("smoke", parents=[common]).set_defaults(stage=smoke)

    one = stages.add_parser("profile", parents=[common])
    one.add_argument("overrides", nargs="*", metavar="table.key=value")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--time-limit", default="9m")
    one.add_argument("--seconds", type=float, default=5.0, help="timed in each setting, besides its warm-up")
    one.add_argument("--batches", type=int, nargs="+", default=[128, 512, 1024])
    one.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"], choices=("bfloat16", "float32"))
    one.add_argument("--compile", nargs="+", default=["off", "on"], choices=("on", "off"))
    one.set_defaults(stage=profile)

    one = stages.add_parser("train", parents=[common])
    one.add_argument("recipe")
    one.add_argument("overrides", nargs="*", metavar="table.key=value")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--time-limit", default="10m", help="of the whole command; training stops a minute before")
    one.add_argument("--from", dest="shards", type=Path, help="parts of an unfinished run to go on with")
    one.set_defaults(stage=train)

    one = stages.add_parser("restore", parents=[common])
    one.add_argument("shards", type=Path)
    one.add_argument("--runs", type=Path, default=Path("runs"))
    one.set_defaults(stage=lambda args: print(restore(args.shards, args.runs)))
    return whole


def main() -> None:
    from weightclass.errors import UserError

    args = parser().parse_args()
    if "work" in args:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(args.work / "inductor"))
        if args.data:
            os.environ["WEIGHTCLASS_DATA"] = str(args.data)
    try:
        args.stage(args)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
