"""Every "auto" is settled once; what was settled stands; the probe, the processor and the memory are told truly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from weightclass import device
from weightclass.device import Decisions, Machine
from weightclass.errors import UserError

PLAIN = Decisions(device="cpu", threads=1, precision="float32", compile=False)


@pytest.fixture(autouse=True)
def _one_thread_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


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
    assert decisions == Decisions(device="cuda", threads=1, precision="bfloat16", compile=True)
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


def test_earlier_decisions_stand() -> None:
    earlier = Decisions(device="cpu", threads=3, precision="bfloat16", compile=True)
    assert device.decide(Machine(), earlier) == earlier
    agreeing = Machine(device="cpu", threads=3, precision="bfloat16", compile="on")
    assert device.decide(agreeing, earlier) == earlier


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [("device", "cuda", "cpu"), ("threads", 2, 1), ("precision", "bfloat16", "float32"), ("compile", "on", "off")],
)
def test_a_setting_that_contradicts_an_earlier_decision(key: str, value: str | int, taken: str | int) -> None:
    config = msgspec.structs.replace(Machine(), **{key: value})
    with pytest.raises(UserError, match=rf"machine.{key} = {value}, but this run was started with {taken}: .*--out"):
        device.decide(config, PLAIN)


def test_applying_sets_the_threads() -> None:
    assert device.apply(msgspec.structs.replace(PLAIN, threads=2)) == torch.device("cpu")
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("wish", "cores"), [("3", 3), ("", None), ("0", None), ("2,1", None), ("all", None)])
def test_omp_num_threads_is_a_wish(monkeypatch: pytest.MonkeyPatch, wish: str, cores: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wish)
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert device._cores() == (cores or available)


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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs another source to compare with")
def test_peak_memory_is_in_bytes() -> None:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert device.peak_memory(torch.device("cpu")) == pytest.approx(1024 * kilobytes, rel=0.02)
