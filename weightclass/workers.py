"""Further processes for work that many can share, on this machine or on the nodes of a Ray cluster.

They agree on nothing but what the work itself keeps in folders that all see. Here they are started, and told to stop.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from weightclass import device
from weightclass.errors import UserError
from weightclass.files import cured
from weightclass.runtimes.runner import needs
from weightclass.stopping import Stopper

Call = Callable[[Stopper], object]
LOOK = 0.5
"""Seconds between two looks at whether a Ray worker has ended, or the first process has."""


@contextmanager
def helping(
    task: Callable[..., object], arguments: tuple, jobs: int, ray: str | None, deadline: float | None, out: str | Path
) -> Iterator[Stopper]:
    """Has further processes call `task(*arguments, stopper)` until this one leaves the block, however it does.

    `task` is a module's function. Without `ray`, this process is the first of `jobs` that share the cores. With it (the
    address of a Ray cluster, or "local" for one of this machine's own) `jobs` workers do all, and the block is entered
    when one of them found nothing more to do, or it is time to stop. `out` is a folder that all must see; `deadline` a
    time.monotonic() value. Yields this process's stopper. Raises UserError: no such cluster, or all its workers failed.
    """
    call, stopper = partial(task, *arguments), Stopper(deadline)
    with _on_ray(call, jobs, ray, stopper, Path(out)) if ray else _here(call, jobs, deadline):
        yield stopper


@contextmanager
def _here(call: Call, jobs: int, deadline: float | None) -> Iterator[None]:
    """A run that was started with more threads keeps them (its bits depend on it), so they are no setting."""
    before, context = os.environ.get("OMP_NUM_THREADS"), multiprocessing.get_context("spawn")
    (here, there), helpers = context.Pipe(), []
    mask: Any = getattr(signal, "pthread_sigmask", lambda *_: ())  # Windows has none
    heard = mask(signal.SIG_BLOCK, {signal.SIGINT})  # which helpers inherit: of a Ctrl-C this process tells them
    os.environ["OMP_NUM_THREADS"] = str(max(1, device.cores() // max(1, jobs)))
    try:
        for _ in range(jobs - 1):
            helpers.append(context.Process(target=_help, args=(call, deadline, there)))
            helpers[-1].start()
        there.close()
        mask(signal.SIG_SETMASK, heard)
        yield
    finally:
        here.close()
        for helper in helpers:
            helper.join()
        os.environ.pop("OMP_NUM_THREADS")
        os.environ |= {"OMP_NUM_THREADS": before} if before else {}


def _help(call: Call, deadline: float | None, first: Connection) -> None:
    error = _until(first.recv, call, deadline)
    if error and not isinstance(error, (UserError, OSError)):  # the first process meets those too, and says so
        print(f"a helper has ended: {_line(error)}", file=sys.stderr)


def _until(ended: Callable[[], object], call: Call, deadline: float | None) -> Exception | None:
    """`call`, told to stop when `ended` returns, for then the first process has; returns what it raised."""
    stopper = Stopper(deadline)

    def follow() -> None:
        with suppress(EOFError, OSError):
            ended()
        stopper.asked = stopper.asked or "SIGTERM"

    threading.Thread(target=follow, daemon=True).start()
    try:
        with suppress(KeyboardInterrupt):
            call(stopper)
    except Exception as error:
        return error
    return None


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, (UserError, OSError)) else f"{type(error).__name__}: {text}"


@contextmanager
def _on_ray(call: Call, jobs: int, address: str, stopper: Stopper, out: Path) -> Iterator[None]:
    with cured(out):
        out.mkdir(parents=True, exist_ok=True)
        marker = tempfile.NamedTemporaryFile(dir=out.resolve(), prefix=".at-work-")  # noqa: SIM115
    with marker, _joined(address, jobs) as ray:
        threads, gpus = share([node["Resources"] for node in ray.nodes() if node["Alive"]], jobs)
        how = {"num_cpus": threads, "num_gpus": gpus, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}}}
        worker = ray.remote(_work).options(name="worker", scheduling_strategy="SPREAD", **how)
        ends = None if stopper.deadline is None else time.time() + stopper.deadline - time.monotonic()
        workers = [worker.remote(call, ends, Path.cwd(), Path(marker.name)) for _ in range(jobs)]
        try:
            with stopper:
                _wait(ray, workers, stopper)
            yield
        finally:
            marker.close()  # and so removed, for which they look
            ray.wait(workers, num_returns=jobs, timeout=120)  # they save


@contextmanager
def _joined(address: str, jobs: int) -> Iterator[Any]:
    """The module ray, joined to the cluster at `address`; it prints what the workers print, and little else."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}
    with needs("ray", "--ray"):
        import ray
    how: Any = {"num_cpus": max(jobs, device.cores()), "object_store_memory": 2**27} if address == "local" else {}
    try:
        if ":" in address:  # Ray itself would try for many minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address, include_dashboard=False, logging_level=logging.ERROR, **how)
    except Exception as error:
        raise UserError(f"--ray {address}: no Ray cluster answers there ({_line(error)})") from None
    try:
        yield ray
    finally:
        time.sleep(LOOK)  # the workers' last lines are on the way
        ray.shutdown()


def share(nodes: Sequence[Mapping[str, float]], jobs: int) -> tuple[int, float]:
    """(CPU threads, GPUs) for each of `jobs` workers: the most with which all find room at once on nodes of these
    resources. Where there are GPUs, each gets one, or an equal part of one."""
    nodes = [node for node in nodes if node.get("GPU")] or nodes
    each = math.ceil(jobs / (sum(node.get("GPU", 0) for node in nodes) or math.inf))  # workers on a GPU

    def room(threads: int) -> float:
        return sum(min(node.get("CPU", 0) // threads, node.get("GPU", 0) * each or math.inf) for node in nodes)

    return next((threads for threads in range(1024, 1, -1) if room(threads) >= jobs), 1), 1 / each if each else 0.0


def _wait(ray: Any, running: list[Any], stopper: Stopper) -> None:
    """Until a worker has found nothing more to do, or it is time to stop. Tells of those that fail."""
    while not stopper.reason():
        ended, running = ray.wait(running, timeout=LOOK)
        for worker in ended:
            try:
                problem = ray.get(worker)
            except ray.exceptions.RayError as error:  # its node is gone, or lacks what it needs
                problem = _line(error)
            if not problem:
                return
            if not running:
                raise UserError(f"all workers have ended, the last one for this: {problem}")
            print(f"a worker has ended, the others go on: {problem}", file=sys.stderr)


def _work(call: Call, ends: float | None, folder: Path, marker: Path) -> str:
    """On a Ray worker: `call` until `marker` is gone; what went wrong, if anything did. `ends` is a time.time()."""

    def ended() -> None:
        while marker.exists():
            time.sleep(LOOK)

    with suppress(OSError):
        os.chdir(folder)  # relative paths are meant from there
    if not marker.exists():
        return f"{socket.gethostname()} does not see {marker.parent}: --out has to be a folder that all nodes share"
    error = _until(ended, call, None if ends is None else time.monotonic() + ends - time.time())
    return f"{socket.gethostname()}: {_line(error)}" if error else ""
