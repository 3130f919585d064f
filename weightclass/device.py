"""The machine: device, threads, precision and compilation, each decided once and kept for the whole run; its memory."""

from __future__ import annotations

import math
import os
import platform
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import torch
import torch.nn.functional as F

from weightclass import ranks
from weightclass.config import Table, parse_quantity
from weightclass.errors import UserError, first_line


class Machine(Table):
    """Recipe table [machine]: how to compute, not what."""

    cosmetic: ClassVar[frozenset[str]] = frozenset({"device", "threads", "compile", "pad", "memory"})

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    """CPU threads; 0: as many as the process may use, of several ranks on a machine each its share."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward and backward pass (weights stay float32). auto: bfloat16 on CUDA, on CPU where a probe says
    that it pays."""
    compile: Literal["auto", "on", "off", "graphs"] = "auto"
    """torch.compile. auto: on CUDA, where torch finds a working compiler (on CPUs it did not pay; docs/LOG.md).
    graphs: also launch each pass whole, as a CUDA graph."""
    pad: Literal["auto", "on", "off"] = "auto"
    """Compute with channels rounded up to multiples of 8 by zeros: the same function, other sums. auto: on CUDA in
    bfloat16, whose matrix units want it."""
    memory: str | int = 0
    """Bytes of images kept on the device, such as "2GB" (0: half of what is free); a larger set is streamed."""

    def __post_init__(self) -> None:
        if self.memory != 0:
            try:
                parse_quantity(self.memory)
            except ValueError as error:
                raise ValueError(f"memory: {error}") from None


class Decisions(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided at a run's first start; a later start reads them and must honour them."""

    device: str
    threads: int
    precision: str
    compile: bool
    graphs: bool = False
    pad: bool = False
    micro_batch: int = 0
    """Images a forward pass where memory ran out and the loop cut the batch; 0: as the recipe says."""
    recompute: bool = False
    """Whether residual blocks are computed again in the backward pass, for the same reason."""
    epochs: int = 0
    """What train.epochs = "fit" came to; 0: the recipe has a number."""
    ranks: int = 1
    """Processes that shared the training when it was started; another number takes the rest as it is but `threads`."""


def decide(config: Machine, earlier: Decisions | None = None) -> Decisions:
    """Settle every "auto". `earlier` decisions stand; a setting that contradicts them is an error."""
    if earlier:
        return _honour(config, earlier)
    device = available(config.device)
    if device == "mps" and ranks.here.size > 1:
        raise UserError("several ranks cannot train on MPS: set machine.device=cpu, or start one process")
    threads = config.threads or cores()
    torch.set_num_threads(threads)
    precision = config.precision
    if precision == "auto":
        cuda = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if cuda or (device == "cpu" and bfloat16_pays()) else "float32"
    compiled = config.compile in ("on", "graphs") or (config.compile == "auto" and device == "cuda")
    if compiled and (problem := compile_problem(device)):
        if config.compile != "auto":
            raise UserError(
                f"machine.compile = {config.compile!r}: torch cannot compile here ({problem}); leave it out"
            )
        compiled = False
    graphs, halves = config.compile == "graphs", device == "cuda" and precision == "bfloat16"
    pad = config.pad == "on" or (config.pad == "auto" and halves)
    how = {"precision": precision, "compile": compiled, "graphs": graphs, "pad": pad}
    return Decisions(device=device, threads=threads, **how, ranks=ranks.here.size)


def apply(decisions: Decisions) -> torch.device:
    """Make this process compute as decided."""
    torch.set_num_threads(decisions.threads)
    # Once a block this large was freed, glibc keeps all smaller ones (mallopt(3), M_MMAP_THRESHOLD): taking a step's
    # large blocks anew, page by page, costs 5 % and more.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    if decisions.device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # torch's default for convolutions, as in the paper's runs
        torch.backends.cudnn.benchmark = True
    if decisions.device == "cpu" or ranks.here.size == 1:
        return torch.device(decisions.device)
    if ranks.here.local_rank >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(
            f"this machine has {count} GPUs for {ranks.here.local_size} ranks: set --nproc-per-node {count}"
        )
    torch.cuda.set_device(ranks.here.local_rank)
    return torch.device("cuda", ranks.here.local_rank)


def cores() -> int:
    """Cores for this process, a rank's share of them (OMP_NUM_THREADS, where it is set, is a wish to be respected)."""
    wish = os.environ.get("OMP_NUM_THREADS", "")
    if wish.isdigit() and int(wish):
        return int(wish)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for _, text in _control_groups("cpu.max"):  # microseconds of computing a period, such as "150000 100000"
        quota, period = text.split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores // ranks.here.local_size)


def available(wanted: str) -> str:
    """`wanted`, or the best device there is for "auto". Raises UserError where torch finds none of that kind."""
    if wanted not in ("auto", "cuda", "mps", "cpu"):
        raise UserError(f"device {wanted!r}: choose auto, cuda, mps or cpu")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, works in there.items() if works)
    if not there[wanted]:
        raise UserError(f"device {wanted}: torch finds none on this machine")
    return wanted


def _honour(config: Machine, earlier: Decisions) -> Decisions:
    if earlier.ranks != ranks.here.size:
        earlier = msgspec.structs.replace(earlier, threads=config.threads or cores())
    taken = {"device": earlier.device, "threads": earlier.threads, "precision": earlier.precision}
    taken["compile"] = "graphs" if earlier.graphs else "on" if earlier.compile else "off"
    taken["pad"] = "on" if earlier.pad else "off"
    for key, value in taken.items():
        if (wanted := getattr(config, key)) not in ("auto", 0, value):
            raise UserError(
                f"machine.{key} = {wanted}, but this run was started with {value}: leave it, or train "
                "in another folder with --out"
            )
    available(earlier.device)
    return earlier


def bfloat16_pays() -> bool:
    """Whether a bf16 convolution, forward and backward, is at least 1.3 times as fast as float32 on this CPU.

    On CPUs without bf16 instructions it is up to 100 times slower, so one round decides there.
    """
    x = torch.ones(128, 64, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
    w = torch.ones(64, 64, 3, 3).to(memory_format=torch.channels_last).requires_grad_()

    def seconds(enabled: bool) -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            F.conv2d(x, w, padding=1).sum().backward()
        return time.perf_counter() - start

    _ = seconds(False), seconds(True)  # the first call of each also makes its kernel
    full = seconds(False)
    if seconds(True) > 5 * full:
        return False
    rounds = [(seconds(False), seconds(True)) for _ in range(5)]
    return min(a for a, _ in rounds) >= 1.3 * min(b for _, b in rounds)


def compile_problem(device: str) -> str | None:
    """What stops torch.compile on this device, in one line; None where it works."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever is amiss in a compiler's tool chain
        return first_line(error)
    return None


def environment() -> Mapping[str, Any]:
    """Where a run ran: versions, processor, accelerator. Goes into environment.json."""
    import numpy

    named = re.search(r"model name\s*: (.+)", _read(_ROOT / "proc/cpuinfo"))
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a str of its own kind, which not every encoder takes
        "numpy": numpy.__version__,
        "system": platform.platform(),
        "processor": named[1] if named else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


# --- time --------------------------------------------------------------------------------------------------


class Stopwatch:
    """The seconds that pieces of work take (compiling them the first time, too), for which nobody is made to wait.

    CUDA works on after the call returns: a pair of events stands around each piece and is read once the device has
    passed it. Elsewhere the host's time is taken.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda, self._called = device.type == "cuda", 0.0
        self._running: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Around a piece of work."""
        called = time.perf_counter()
        start = _passed() if self._cuda else None
        yield
        if start:
            self._running.append((start, _passed()))
        self._called += time.perf_counter() - called

    def read(self) -> tuple[float, float]:
        """Since the last reading: the host's seconds in the calls, and those of the work that is known to be done."""
        called, self._called = self._called, 0.0
        worked = 0.0 if self._cuda else called
        while self._running and self._running[0][1].query():
            start, end = self._running.popleft()
            worked += start.elapsed_time(end) / 1000
        return called, worked


def _passed() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


# --- memory ------------------------------------------------------------------------------------------------

_NO_MEMORY = (
    r"(?i)out of memory|not enough memory|can't allocate memory|alloc_failed|bad_alloc|could not create a memory|"
    r"could not (create|execute) a primitive(?! descriptor)"  # oneDNN's words where its scratchpad found no room
)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out. CUDA has a class for it; MPS, oneDNN, the CPU allocator have words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and re.search(_NO_MEMORY, str(error)) is not None


def room(device: torch.device) -> int:
    """Bytes that a set of images may take on `device` where machine.memory sets none: half of what is free."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory() // ranks.here.local_size
    return free // 2


_ROOT = Path("/")


def _free_memory() -> int:
    """Bytes of RAM that this process may still take; 4 GB where the system does not tell."""
    told = re.search(r"MemAvailable:\s+(\d+) kB", _read(_ROOT / "proc/meminfo"))
    free = 1024 * int(told[1]) if told else 4 * 10**9
    for folder, limit in _control_groups("memory.max"):
        if limit != "max":
            cache = re.search(r"\binactive_file (\d+)", _read(folder / "memory.stat"))  # files that were read once
            taken = int(_read(folder / "memory.current") or 0) - int(cache[1] if cache else 0)
            free = min(free, max(0, int(limit) - taken))
    return free


def _control_groups(name: str) -> Iterator[tuple[Path, str]]:
    """(folder, text) of the file `name` in each of this process's Linux control groups, which bound a container."""
    top = _ROOT / "sys/fs/cgroup"
    for path in re.findall(r"^0::/(.*)", _read(_ROOT / "proc/self/cgroup"), re.MULTILINE):
        for folder in (top / path, *(top / path).parents):
            if folder.is_relative_to(top) and (text := _read(folder / name)):
                yield folder, text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def peak_memory(device: torch.device) -> int:
    """Bytes: the CUDA allocator's peak, elsewhere the process's resident peak (0 where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
