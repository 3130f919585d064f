"""A short visit to a machine with a GPU, stage by stage: check it, profile training, train, bring it all home.

    python benchmarks/gpu_session.py smoke
    python benchmarks/gpu_session.py profile [table.key=value ...] --out DIR [--time-limit 3m]
    python benchmarks/gpu_session.py queue ["RECIPE table.key=value ..." ...] --data DIR --out DIR [--from DIR]
    python benchmarks/gpu_session.py restore DIR --runs DIR

smoke prints the versions found and trains 20 steps. profile prints, and writes as profile.json, images/s, TFLOP/s
(6 x MACs x img/s), the host's part of a step, augmentation's share and peak memory of recipe paper-97 by batch,
precision, compilation and padding. queue trains one recipe after another, each from where it stands, stops a minute
before the limit and leaves in --out at most 5 files, none above 16 MiB: results.tar.gz with every run's small files,
and the float16 weights of what has finished, and all that an unfinished run needs to go on, in parts. restore, or
queue's --from, puts them below a runs folder again. docs/gpu.md tells the sequence.
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
import shlex
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
PART, ROOM = 16 * MIB - 1, 63 * MIB
RESERVE = 60.0
"""Seconds of a command's limit kept back for scoring, copying and the end of the process."""
BEGIN = 60.0
"""Seconds that must be left for a run to be begun or gone on with, for it may have to compile first."""
SMALL = ("result.json", "metrics.jsonl", "environment.json", "recipe.toml", "test_readings.jsonl", "left_out.txt")
HALF = "weights-fp16.safetensors"

PAPER = (
    *("paper-97", "paper-97 train.seed=1", "table5-row9", "table5-row4", "table5-row2", "table5-row8", "resnet18-97"),
    *("table3-row2", "table5-row3", "table5-row5", "table5-row6", "table5-row7"),  # Tables 4, 3 and 2
    *("table1-auto-flip-crop", "table1-flip-crop"),
)

# --- bringing runs home, and back --------------------------------------------------------------------------


def bring_home(folders: list[Path], moved: list[Path], out: Path, part: int = PART, room: int = ROOM) -> list[Path]:
    """Copy to `out` the small files of run folders as one file and, in parts of `part` bytes, as far as `room` bytes
    go, of those that `moved`: the weights of a finished run, the newest checkpoint of another one (its weights, where
    that is too large). Says what stays behind."""
    out.mkdir(parents=True, exist_ok=True)
    small = [folder / name for folder in folders for name in SMALL if (folder / name).exists()]
    (out / "results.tar.gz").write_bytes(tarred(small, "w:gz"))
    cargo: list[Path] = []
    for folder in moved:
        finished = (folder / "result.json").exists()
        for choose in (half,) if finished else (newest_checkpoint, half):
            path = choose(folder)
            if path.stat().st_size + MIB < room - sum(other.stat().st_size for other in cargo):
                cargo.append(path)
                break
            print(f"stays here, for {room / MIB:.0f} MiB come home: {path} ({path.stat().st_size / MIB:.0f} MiB)")
    if cargo:
        split(tarred(cargo, "w"), out, part)
    return sorted(out.iterdir())


def tarred(files: list[Path], mode: str) -> bytes:
    """A tar of files of run folders, below those folders' own names."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for path in files:
            inside = path.parent.name == "checkpoint"
            tar.add(path, Path(*path.parts[-3 if inside else -2 :]).as_posix())
    return stream.getvalue()


def newest_checkpoint(folder: Path) -> Path:
    """Checkpoints are named by their step first."""
    from weightclass.errors import UserError

    found = sorted((folder / "checkpoint").glob("*.safetensors"))
    if not found:
        raise UserError(f"{folder}: neither a model nor a checkpoint in it: the run was stopped before its first step")
    return found[-1]


def half(folder: Path) -> Path:
    """Write the run's weights, averaged where it averages, float16 but for norms and biases; the header is kept."""
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
        tensors = without_padding(tensors, folder)
    save_file({name: halved(tensor) for name, tensor in tensors.items()}, folder / HALF, header)
    return folder / HALF


def without_padding(tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors in the shapes of the recipe's network."""
    from weightclass import recipe
    from weightclass.data import sources
    from weightclass.model import networks, padding

    named = recipe.load(str(folder / "recipe.toml")).recipe
    found = sources.find(named.data)
    like = networks.build(named.model, found.image_shape, found.classes).state_dict()
    return {name: padding.corner(tensor, tuple(like[name].shape)) for name, tensor in tensors.items()}


def halved(tensor: Tensor) -> Tensor:
    """float16, but for vectors: they are few, and a small variance would lose digits."""
    return tensor.half() if tensor.ndim > 1 and tensor.is_floating_point() else tensor


def split(payload: bytes, out: Path, part: int = PART) -> None:
    """Write `payload` as runs-HASH.tar.1-of-N ..., HASH being the head of its SHA-256."""
    pieces = [payload[start : start + part] for start in range(0, len(payload), part)]
    digest = hashlib.sha256(payload).hexdigest()[:16]
    for number, piece in enumerate(pieces, start=1):
        (out / f"runs-{digest}.tar.{number}-of-{len(pieces)}").write_bytes(piece)


def restore(home: Path, runs: Path) -> list[str]:
    """Put what `bring_home` left in `home` below `runs`; returns the folders' names. UserError where a part is lost."""
    payloads = [path.read_bytes() for path in home.glob("results.tar.gz")]
    names: set[str] = set()
    for payload in (*payloads, *joined(home, needed=not payloads)):
        with tarfile.open(fileobj=io.BytesIO(payload)) as tar:
            for member in tar:  # by hand: extractall's filter came with Python 3.11.4
                target = (runs / member.name).resolve()
                if member.isfile() and target.is_relative_to(runs.resolve()):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
                    names.add(member.name.partition("/")[0])
    return sorted(names)


def joined(home: Path, needed: bool) -> list[bytes]:
    """The tar that the parts in a folder make up; none where there is none of them."""
    from weightclass.errors import UserError

    named = [
        (path, re.fullmatch(r"runs-([0-9a-f]{16})\.tar\.(\d+)-of-(\d+)", path.name)) for path in home.glob("runs-*")
    ]
    found = {int(match[2]): (path, match[1], int(match[3])) for path, match in named if match}
    if not found and not needed:
        return []
    if not found or set(found) != set(range(1, next(iter(found.values()))[2] + 1)):
        raise UserError(f"{home}: holds parts {sorted(found)} of what came home, not all of them: fetch the rest")
    payload = b"".join(found[number][0].read_bytes() for number in sorted(found))
    if {digest for _, digest, _ in found.values()} != {hashlib.sha256(payload).hexdigest()[:16]}:
        raise UserError(f"{home}: the parts do not make up the file they were cut from: fetch them anew")
    return [payload]


# --- queue -------------------------------------------------------------------------------------------------


def queue(args: argparse.Namespace) -> None:
    """Train recipe after recipe below the temporary folder until the time is up; then bring all of it home."""
    from weightclass import run
    from weightclass.config import parse_duration

    runs = args.work / "runs"
    if args.home:
        print("restored", *restore(args.home, runs))
    deadline = STARTED + parse_duration(args.time_limit) - RESERVE
    outcomes: list[run.Outcome] = []
    for item in args.items or PAPER:
        left = deadline - time.monotonic()
        if left < BEGIN or (outcomes and outcomes[-1].stopped):
            print(f"not begun, {max(left, 0):.0f} s being left: {item}")
            continue
        name, *overrides = shlex.split(item)
        try:
            outcomes.append(run.train(name, *args.every, *overrides, *on(args.device), out=runs, time_limit=left))
        except Exception as error:  # the others still count
            print(f"failed: {item}: {type(error).__name__}: {error}")
        gc.collect()
        free()
    moved = [outcome.folder for outcome in outcomes if outcome.fresh or outcome.stopped]
    for path in bring_home([outcome.folder for outcome in outcomes], moved, args.out):
        print(f"{path.stat().st_size:>12,}  {path}")


def free() -> None:
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
    pad: str


def profile(args: argparse.Namespace) -> None:
    """Every setting in turn until the time is up; the file is written after each, so that nothing is lost."""
    from weightclass.config import parse_duration

    deadline = STARTED + parse_duration(args.time_limit) - RESERVE
    args.out.mkdir(parents=True, exist_ok=True)
    splits = load_splits(args.data)
    results: list[dict[str, Any]] = []
    for setting in itertools.starmap(Setting, itertools.product(args.batches, args.precisions, args.compile, args.pad)):
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
        free()
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
    from weightclass.training.loop import compiled, training_step

    with tempfile.TemporaryDirectory() as folder:
        run = open_run(setting, splits, args, Path(folder))
        batches = endless(run.batches)
        forward = compiled(run.state.model, run.plan)
        run.state.model.train()

        def step() -> None:
            training_step(run.state, run.plan, next(batches), forward)

        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        warm_up = timed(step, 1) + timed(step, 4) * 4  # compiles, lets cuDNN choose its algorithms
        steps = max(2, int(args.seconds / timed(step, 2)))
        host = min(issued(step) for _ in range(5))
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
            "host_milliseconds": round(1000 * host, 2),
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
        f"machine.pad={setting.pad}",
        "train.drop_last=true",  # a smaller batch would be compiled anew
    )
    return Session(named, recipe.weigh(named.recipe), splits, folder, quiet=True)


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


def issued(work: Callable[[], Any]) -> float:
    """Seconds until a call returns to the host, the device idle before it: where that is longer than the device's own
    work, the device waits."""
    wait()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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
    numbers = ("img/s", "TFLOP/s", "host", "augmentation", "peak memory", "warm-up")
    for column in ("batch", "precision", "compiled", "padded", *numbers):
        grid.add_column(column)
    for row in results:
        how = (str(row["batch"]), row["precision"], row["compile"], row["pad"])
        if "error" in row:
            grid.add_row(*how, row["error"])
            continue
        speed = (f"{row['images_per_second']:,.0f}", f"{row['tflops']:.2f}", f"{row['host_milliseconds']:.1f} ms")
        rest = (f"{row['augmentation']:.1%}", human_bytes(row["peak_memory"]), f"{row['warm_up_seconds']:.0f} s")
        grid.add_row(*how, *speed, *rest)
    console().print(grid)


# --- smoke -------------------------------------------------------------------------------------------------

NEEDED = ("torch", "numpy", "safetensors", "msgspec", "tomli-w", "click", "filelock", "rich", "matplotlib")
NEEDED += ("scikit-learn", "scipy", "pillow")


def smoke(args: argparse.Namespace) -> None:
    """What is installed, and 20 steps of quickstart from images to result."""
    for name in NEEDED:
        try:
            print(f"{name:>14} {version(name)}")
        except PackageNotFoundError:
            print(f"{name:>14} missing")
    print(f"{'CUDA':>14} {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no device'}")
    run = importlib.import_module("weightclass.run")
    twenty = ("train.epochs=1", "train.batch_size=71", "train.drop_last=true", "machine.compile=off")  # 1,437 images
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
    one.add_argument("--seconds", type=float, default=3.0, help="timed in each setting, besides its warm-up")
    one.add_argument("--batches", type=int, nargs="+", default=[128])
    one.add_argument("--precisions", nargs="+", default=["bfloat16"], choices=("bfloat16", "float32"))
    one.add_argument("--compile", nargs="+", default=["on", "graphs", "off"], choices=("on", "graphs", "off"))
    one.add_argument("--pad", nargs="+", default=["on", "off"], choices=("on", "off"))
    one.set_defaults(stage=profile)

    one = stages.add_parser("queue", parents=[common])
    one.add_argument("items", nargs="*", metavar='"RECIPE table.key=value ..."', help=f"{', '.join(PAPER)}")
    one.add_argument("--every", nargs="*", default=[], metavar="table.key=value", help="overrides of all of them")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--time-limit", default="10m", help="of the whole command; training stops a minute before")
    one.add_argument("--from", dest="home", type=Path, help="what came home of an unfinished run, to go on with it")
    one.set_defaults(stage=queue)

    one = stages.add_parser("restore", parents=[common])
    one.add_argument("home", type=Path)
    one.add_argument("--runs", type=Path, default=Path("runs"))
    one.set_defaults(stage=lambda args: print(*restore(args.home, args.runs)))
    return whole


def main() -> None:
    from weightclass.errors import UserError

    args = parser().parse_args()
    if "work" in args:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(args.work / "inductor"))
        os.environ.setdefault("WEIGHTCLASS_CACHE", str(args.work / "cache"))  # whose default place only pooch knows
        if args.data:
            os.environ["WEIGHTCLASS_DATA"] = str(args.data)
    try:
        args.stage(args)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
