"""Every "auto" is settled once; what was settled stands; the probe, the processor and the memory are told truly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from weightclass import config, device, ranks
from weightclass.device import Decisions, Machine, Stopwatch
from weightclass.errors import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = Decisions(device="cpu", threads=1, precision="float32", compile=False)


@pytest.fixture(autouse=True)
def _one_thread_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A root without /proc and /sys, to be filled."""
    monkeypatch.setattr(device, "_ROOT", tmp_path)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


@pytest.fixture
def _no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def _compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "compile_problem", lambda _: None)


@pytest.mark.usefixtures("_compiler")
def test_explicit_settings_are_taken() -> None:
    config = Machine(device="cpu", threads=2, precision="bfloat16", compile="on")
    decisions = device.decide(config)
    assert decisions == Decisions(device="cpu", threads=2, precision="bfloat16", compile=True)
    assert torch.get_num_threads() == 2
    graphs = device.decide(Machine(device="cpu", threads=2, precision="float32", compile="graphs", pad="on"))
    assert (graphs.compile, graphs.graphs, graphs.pad) == (True, True, True)


@pytest.mark.parametrize(("pays", "precision"), [(False, "float32"), (True, "bfloat16")])
@pytest.mark.usefixtures("_no_accelerator")
def test_auto_on_a_cpu(monkeypatch: pytest.MonkeyPatch, pays: bool, precision: str) -> None:
    monkeypatch.setattr(device, "bfloat16_pays", lambda: pays)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert device.decide(Machine()) == Decisions(device="cpu", threads=2, precision=precision, compile=False)


@pytest.mark.usefixtures("_compiler")
def test_auto_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert device.decide(Machine(threads=1)).precision == "float32"  # an older card, which would only emulate it
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    decisions = device.decide(Machine(threads=1))
    assert decisions == Decisions(device="cuda", threads=1, precision="bfloat16", compile=True, pad=True)
    assert not device.decide(Machine(threads=1, precision="float32")).pad
    assert device.decide(Machine(threads=1, compile="off", precision="float32", device="cpu")) == PLAIN


@pytest.mark.parametrize("name", ["cuda", "mps"])
@pytest.mark.usefixtures("_no_accelerator")
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match=f"device {name}: torch finds none on this machine"):
        device.decide(msgspec.structs.replace(Machine(threads=1), device=name))
    with pytest.raises(UserError, match="torch finds none"):  # a run folder that came from another machine
        device.decide(Machine(), msgspec.structs.replace(PLAIN, device=name))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("no C++ compiler\nat /usr/bin")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not device.decide(Machine(threads=1, precision="float32")).compile
    with pytest.raises(UserError, match=r"torch cannot compile here \(no C\+\+ compiler\); leave it out"):
        device.decide(Machine(threads=1, device="cpu", compile="on"))
    with pytest.raises(UserError, match=r"machine\.compile = 'graphs': torch cannot compile here"):
        device.decide(Machine(threads=1, device="cpu", compile="graphs"))


def test_earlier_decisions_stand() -> None:
    earlier = Decisions(device="cpu", threads=3, precision="bfloat16", compile=True)
    assert device.decide(Machine(), earlier) == earlier
    agreeing = Machine(device="cpu", threads=3, precision="bfloat16", compile="on")
    assert device.decide(agreeing, earlier) == earlier
    more = msgspec.structs.replace(earlier, graphs=True, pad=True)
    assert device.decide(Machine(compile="graphs", pad="on"), more) == more
    cut = msgspec.structs.replace(earlier, micro_batch=32, recompute=True)
    assert device.decide(agreeing, cut) == cut


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [
        *[("device", "cuda", "cpu"), ("threads", 2, 1), ("precision", "bfloat16", "float32"), ("compile", "on", "off")],
        *[("compile", "graphs", "off"), ("pad", "on", "off")],
    ],
)
def test_a_setting_that_contradicts_an_earlier_decision(key: str, value: str | int, taken: str | int) -> None:
    config = msgspec.structs.replace(Machine(), **{key: value})
    with pytest.raises(UserError, match=rf"machine.{key} = {value}, but this run was started with {taken}: .*--out"):
        device.decide(config, PLAIN)


def test_another_number_of_ranks_takes_its_own_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cores", lambda: 3)
    earlier = msgspec.structs.replace(PLAIN, threads=8, precision="bfloat16")
    monkeypatch.setattr(ranks, "here", ranks.Here(1, 2, 1, 2))
    assert device.decide(Machine(), earlier) == msgspec.structs.replace(earlier, threads=3)
    assert device.decide(Machine(threads=2), earlier).threads == 2
    same = msgspec.structs.replace(earlier, ranks=2)
    assert device.decide(Machine(), same) == same
    assert device.decide(Machine(threads=1, device="cpu", precision="float32")).ranks == 2


def test_cores_and_memory_are_shared_by_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(device, "_free_memory", lambda: 1200)
    alone = device.cores()
    assert device.room(torch.device("cpu")) == 600
    monkeypatch.setattr(ranks, "here", ranks.Here(0, 8, 0, 3))
    assert device.cores() == max(1, alone // 3)
    assert device.room(torch.device("cpu")) == 200


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cuda = msgspec.structs.replace(PLAIN, device="cuda")
    monkeypatch.setattr(ranks, "here", ranks.Here(5, 6, 1, 3))
    assert device.apply(cuda) == torch.device("cuda", 1)
    assert taken == [1]
    monkeypatch.setattr(ranks, "here", ranks.Here(2, 3, 2, 3))
    with pytest.raises(UserError, match="2 GPUs for 3 ranks: set --nproc-per-node 2"):
        device.apply(cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"cannot train on MPS: set machine.device=cpu"):
        device.decide(Machine(device="mps"))


def test_applying_sets_the_threads() -> None:
    assert device.apply(msgspec.structs.replace(PLAIN, threads=2)) == torch.device("cpu")
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(("wish", "cores"), [("3", 3), ("", None), ("0", None), ("2,1", None), ("all", None)])
def test_omp_num_threads_is_a_wish(monkeypatch: pytest.MonkeyPatch, wish: str, cores: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert device.cores() == (cores or available)


@pytest.mark.parametrize(
    ("quota", "cores"), [("100000 100000", 1), ("10000 100000", 1), ("250000 100000", 3), ("max 100000", 8)]
)
def test_a_container_may_allow_fewer_cores(monkeypatch: pytest.MonkeyPatch, bare: Path, quota: str, cores: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    write(bare, {"proc/self/cgroup": "0::/pod/job\n", "sys/fs/cgroup/pod/cpu.max": quota + "\n"})
    assert device.cores() == cores


@pytest.mark.parametrize(
    ("full", "half", "pays"), [(1.31, 1.0, True), (1.2, 1.0, False), (1.0, 100.0, False), (1.0, 4.0, False)]
)
def test_the_probe_compares_the_times(monkeypatch: pytest.MonkeyPatch, full: float, half: float, pays: bool) -> None:
    """A clock that goes by how the convolution was computed."""
    clock = [0.0]

    def convolution(x: torch.Tensor, w: torch.Tensor, padding: int) -> torch.Tensor:
        clock[0] += half if torch.is_autocast_enabled("cpu") else full
        return x.sum() + w.sum()

    monkeypatch.setattr(device.F, "conv2d", convolution)
    monkeypatch.setattr(device.time, "perf_counter", lambda: clock[0])
    assert device.bfloat16_pays() is pays


def test_the_environment_is_told() -> None:
    facts = device.environment()
    assert facts["torch"] == torch.__version__
    assert facts["processor"]
    assert set(facts) == {"python", "torch", "numpy", "system", "processor", "cores", "accelerator"}
    msgspec.json.encode(facts)


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5.56 GB, max allowed: 6.80 GB)."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:76] data. DefaultCPUAllocator: not enough memory: you"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("could not create a primitive descriptor for a convolution forward propagation"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"), False),
        (OSError("out of memory"), False),
    ],
)
def test_which_errors_mean_that_memory_ran_out(error: Exception, is_it: bool) -> None:
    assert device.out_of_memory(error) is is_it


def test_a_real_allocation_that_is_too_large_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert device.out_of_memory(caught.value)


JOB = "sys/fs/cgroup/pod/job/memory."


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({"sys/fs/cgroup/memory.max": "max"}, 8000 * 1024),
        ({JOB + "max": "5000", JOB + "current": "1000"}, 4000),
        ({"sys/fs/cgroup/pod/memory.max": "5000", "sys/fs/cgroup/pod/memory.current": "6000"}, 0),
        ({JOB + "max": "5000", JOB + "current": "4900", JOB + "stat": "anon 900\ninactive_file 3700\n"}, 3800),
    ],
)
def test_half_of_what_is_free_may_be_filled(bare: Path, files: dict[str, str], free: int) -> None:
    meminfo = "MemTotal:    9000 kB\nMemAvailable:    8000 kB\n"
    write(bare, {"proc/meminfo": meminfo, "proc/self/cgroup": "0::/pod/job\n", **files})
    assert device.room(torch.device("cpu")) == free // 2


@pytest.mark.usefixtures("bare")
def test_room_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.room(torch.device("cpu")) == 2 * 10**9
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (6000, 8000))
    assert device.room(torch.device("cuda")) == 3000


@pytest.mark.parametrize("size", [2_000_000_000, "2GB", "512MiB", 0])
def test_room_may_be_set(size: str | int) -> None:
    assert config.build({"memory": size}, Machine, "recipe").memory == size


@pytest.mark.parametrize("size", ["much", "", "-1GB", -5])
def test_room_that_is_no_size(size: str | int) -> None:
    with pytest.raises(UserError, match=f"memory: {size!r} is not a size"):
        config.build({"memory": size}, Machine, "recipe")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs another source to compare with")
def test_peak_memory_is_in_bytes() -> None:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert device.peak_memory(torch.device("cpu")) == pytest.approx(1024 * kilobytes, rel=0.02)


# --- time --------------------------------------------------------------------------------------------------


class Event:
    """A CUDA event of a device that has got as far as event `reached`; event n is passed at n * n milliseconds."""

    made, reached = 0, 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.number = Event.made = Event.made + 1
        self.recorded = False

    def record(self) -> None:
        self.recorded = True

    def query(self) -> bool:
        return self.recorded and self.number <= Event.reached

    def elapsed_time(self, end: Event) -> float:
        assert self.query() and end.query()
        return end.number**2 - self.number**2


def ticking(monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> None:
    clock = iter(seconds)
    monkeypatch.setattr("weightclass.device.time.perf_counter", lambda: next(clock))


def test_a_stopwatch_takes_the_hosts_time_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking(monkeypatch, [10, 12, 20, 21])
    watch = Stopwatch(CPU)
    for _ in range(2):
        with watch.timing():
            pass
    assert watch.read() == (3, 3)
    assert watch.read() == (0, 0)


def test_a_stopwatch_reads_on_cuda_what_the_device_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "made", 0)
    ticking(monkeypatch, [10, 12, 20, 21, 30, 31])
    watch = Stopwatch(CUDA)
    for _ in range(3):
        with watch.timing():
            pass
    readings = []
    for reached in (3, 4, 6):  # in the middle of the second piece, behind it, behind all
        monkeypatch.setattr(Event, "reached", reached)
        readings.append(watch.read())
    assert readings == [(4, 0.003), (0, 0.007), (0, 0.011)]
    assert watch.read() == (0, 0)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_work_that_fails_is_not_timed(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = Stopwatch(device)
    with pytest.raises(MemoryError), watch.timing():
        raise MemoryError
    assert watch.read() == (0, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_stopwatch_on_a_real_gpu() -> None:
    watch, x = Stopwatch(CUDA), torch.ones(4096, 4096, device="cuda")
    with watch.timing():
        for _ in range(20):
            x = x @ x / 4096
    torch.cuda.synchronize()
    called, worked = watch.read()
    assert called > 0 and 0.001 < worked < 10
