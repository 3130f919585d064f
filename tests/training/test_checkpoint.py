"""A resumed run is the same run, bit for bit; damage and a full disk cost at most the newest checkpoint."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.reference.tiny_run import Run, Watcher, differing
from weightclass import files
from weightclass.errors import UserError
from weightclass.training import optim
from weightclass.training.checkpoint import Keeper, _networks, pack, unpack
from weightclass.training.loop import Train
from weightclass.training.schedule import Cosine

ROOT = Path(__file__).parents[2]
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd with average": (optim.SGD(lr=0.05), {"ema": 0.9}),
    "sgd without momentum": (optim.SGD(lr=0.05, momentum=0.0), {}),
    "sgd with lookahead": (optim.SGD(lr=0.05), {"lookahead": 2}),
    "adadelta": (optim.Adadelta(), {}),
    "adamw with average": (optim.AdamW(), {"ema": 0.99, "sam": 0.05}),
}


def fresh(kind: str = "sgd with average", seed: int = 0) -> Run:
    optimizer, settings = OPTIMIZERS[kind]
    return Run(Train(epochs=2, batch_size=16, seed=seed, **settings), optimizer, Cosine(), dropout=0.2)


def trained(folder: Path, steps: int, kind: str = "sgd with average") -> Run:
    """Stopped after `steps` of six, with a checkpoint of that step alone."""
    run = fresh(kind)
    assert run.fit(folder, Watcher(stop_at=steps)) == "asked"
    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- the same run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 3, 4])  # 3: between the epochs
def test_resumed_equals_uninterrupted(tmp_path: Path, kind: str, steps: int, channels_last: bool) -> None:
    def made() -> Run:
        run = fresh(kind)
        if channels_last:
            for model in _networks(run.state).values():
                model.to(memory_format=torch.channels_last)
        return run

    whole, first, second = made(), made(), made()
    seen, seen_later = Watcher(), Watcher()
    assert whole.fit(tmp_path / "whole", seen) is None
    assert first.fit(tmp_path / "cut", Watcher(stop_at=steps)) == "asked"
    first.state.seconds = 12.5
    saved = Keeper(tmp_path / "cut").save(first.state)
    assert saved.parent == tmp_path / "cut"
    assert Keeper(tmp_path / "cut").load_latest(second.state)
    assert (second.state.step, second.state.seconds) == (steps, 12.5)
    assert second.fit(tmp_path / "cut", seen_later) is None
    assert second.state.step == whole.state.step == 6
    assert not differing(whole.tensors(), second.tensors())
    assert seen.epochs[-1] == seen_later.epochs[-1]
    assert seen.losses[steps:] == seen_later.losses


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_unpack_of_pack(tmp_path: Path, kind: str) -> None:
    run, other = trained(tmp_path, 2, kind), fresh(kind)
    tensors = safetensors.torch.load(safetensors.torch.save(pack(run.state)))
    unpack(other.state, 2, tensors)
    assert not differing(pack(other.state), tensors)
    assert not differing(run.tensors(), other.tensors())
    for parameter, twin in zip(run.state.model.parameters(), other.state.model.parameters(), strict=True):
        mine, theirs = run.state.optimizer.state[parameter], other.state.optimizer.state[twin]
        for name, value in mine.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, theirs[name]), name
                assert (value.dtype, value.stride()) == (theirs[name].dtype, theirs[name].stride()), name


def test_the_times_are_kept_and_a_checkpoint_of_before_augmentation_was_timed_is_taken(tmp_path: Path) -> None:
    run, other = trained(tmp_path, 1), fresh()
    times = {"seconds": 8.0, "waited": 4.0, "saved": 2.0, "augmented": 1.0}
    vars(run.state).update(times)
    tensors = pack(run.state)
    unpack(other.state, 1, tensors)
    assert {name: getattr(other.state, name) for name in times} == times
    other = fresh()
    unpack(other.state, 1, tensors | {"clock": tensors["clock"][:3]})
    assert {name: getattr(other.state, name) for name in times} == times | {"augmented": 0.0}


@pytest.mark.parametrize("kind", ["sgd with average", "sgd with lookahead"])
def test_another_networks_checkpoint_is_not_taken(tmp_path: Path, kind: str) -> None:
    tensors = pack(trained(tmp_path, 1, "sgd without momentum").state)
    with pytest.raises(KeyError):
        unpack(fresh(kind).state, 1, tensors)


# --- the folder --------------------------------------------------------------------------------------------


def test_no_checkpoint(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "none")
    assert not keeper.load_latest(fresh().state)
    keeper.clear()
    assert keeper.damaged == []
    assert not (tmp_path / "none").exists()


def test_two_are_kept_and_named_by_step_and_hash(tmp_path: Path) -> None:
    run, keeper = fresh(), Keeper(tmp_path, every_seconds=1e-9)
    assert run.fit(tmp_path, every=1e-9) is None  # due at every step
    assert [name[:10] for name in names(tmp_path)] == ["000000005-", "000000006-"]
    for name in names(tmp_path):
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert name[10:] == f"{digest[:16]}.safetensors"
    keeper.clear()
    assert not tmp_path.exists()


def test_a_step_saved_twice_loads_the_later(tmp_path: Path) -> None:
    run, other = trained(tmp_path, 2), fresh()
    earlier = tmp_path / names(tmp_path)[0]
    os.utime(earlier, (1, 1))
    run.state.seconds = 99.0
    Keeper(tmp_path).save(run.state)
    assert len(names(tmp_path)) == 2
    assert Keeper(tmp_path).load_latest(other.state)
    assert other.state.seconds == 99.0


def test_saves_are_due_in_time_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("weightclass.training.checkpoint.time.monotonic", lambda: now[0])
    keeper = Keeper(tmp_path, every_seconds=60)
    for _ in range(29):  # steps of two seconds
        now[0] += 2
        due = keeper.due()
    assert (due, now[0]) == (True, 158.0)  # the next question, at 160, would be just too late
    monkeypatch.setattr("weightclass.training.checkpoint.atomic_write", lambda *_: now.append(now.pop() + 5))
    state = fresh().state
    keeper.save(state)
    assert (keeper.slowest, state.saved) == (5, 5)
    saved = now[0]
    while not keeper.due():
        now[0] += 2
    assert now[0] - saved == 48  # a step and two saves before the minute is over


@pytest.mark.parametrize("leftover", [".000000009-0123456789abcdef.safetensors.77.tmp", "notes.txt", "x.safetensors"])
def test_other_files_are_harmless(tmp_path: Path, leftover: str) -> None:
    run, other = trained(tmp_path, 2), fresh()
    (tmp_path / leftover).write_bytes(b"half a checkpo")
    keeper = Keeper(tmp_path)
    assert keeper.load_latest(other.state)
    assert keeper.damaged == []
    assert not differing(run.tensors(), other.tensors())
    keeper.clear()
    assert [name for name in names(tmp_path.parent) if name == tmp_path.name] == (
        [] if leftover.endswith(".tmp") else [tmp_path.name]
    )


# --- damage ------------------------------------------------------------------------------------------------


def damaged(payload: bytes, how: str) -> bytes:
    middle = len(payload) // 2
    flipped = payload[:middle] + bytes([payload[middle] ^ 1]) + payload[middle + 1 :]
    return {"flipped bit": flipped, "truncated": payload[:-1], "empty": b"", "longer": payload + b"\0"}[how]


@pytest.mark.parametrize("how", ["flipped bit", "truncated", "empty", "longer"])
def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path: Path, how: str) -> None:
    run, other = trained(tmp_path, 2), fresh()
    good = {name: tensor.clone() for name, tensor in run.tensors().items()}
    run.fit(tmp_path, Watcher(stop_at=4))
    older, newest = names(tmp_path)
    (tmp_path / newest).write_bytes(damaged((tmp_path / newest).read_bytes(), how))
    keeper = Keeper(tmp_path)
    assert keeper.load_latest(other.state)
    assert keeper.damaged == [newest]
    assert names(tmp_path) == [older, newest.replace("safetensors", "damaged")]
    assert other.state.step == 2
    assert not differing(good, other.tensors())


def test_both_damaged_is_a_new_start(tmp_path: Path) -> None:
    run, other, untouched = trained(tmp_path, 2), fresh(), fresh()
    run.fit(tmp_path, Watcher(stop_at=4))
    older, newest = names(tmp_path)
    for name in (older, newest):
        (tmp_path / name).write_bytes(b"\0" * 100)
    keeper = Keeper(tmp_path)
    assert not keeper.load_latest(other.state)
    assert keeper.damaged == [newest, older]
    assert other.state.step == 0
    assert not differing(other.tensors(), untouched.tensors())


# --- a full disk -------------------------------------------------------------------------------------------


def assert_last_good_is_left(folder: Path, good: list[str], step: int) -> None:
    assert names(folder) == good
    other = fresh()
    keeper = Keeper(folder)
    assert keeper.load_latest(other.state)
    assert (other.state.step, keeper.damaged) == (step, [])


@pytest.mark.parametrize("place", ["fsync", "replace", "mkdir"])
def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = trained(tmp_path, 2)
    good = names(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(*((files.os, "fsync") if place == "fsync" else (Path, place)), full)
        with pytest.raises(UserError, match=f"disk full.*the last good checkpoint is {good[0]}"):
            run.fit(tmp_path, Watcher(stop_at=3))
    assert_last_good_is_left(tmp_path, good, 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk(tmp_path: Path) -> None:
    run = trained(tmp_path, 2)
    good = names(tmp_path)
    run.state.step = 3
    name = f"000000003-{hashlib.sha256(safetensors.torch.save(pack(run.state))).hexdigest()[:16]}.safetensors"
    (tmp_path / f".{name}.{os.getpid()}.tmp").symlink_to("/dev/full")  # what atomic_write will write to
    with pytest.raises(UserError, match="disk full"):
        Keeper(tmp_path).save(run.state)
    assert_last_good_is_left(tmp_path, good, 2)


def test_the_first_checkpoint_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="the last good checkpoint is none"):
        Keeper(tmp_path / "new").save(fresh().state)


def test_killed_in_the_middle_of_a_save(tmp_path: Path) -> None:
    """SIGKILL between two halves of a write: the last good checkpoint stands, the next start takes it."""
    run = trained(tmp_path, 2)
    good = names(tmp_path)[0]
    code = (
        "import os, signal, sys\nfrom weightclass import files\n"
        "files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.atomic_write(sys.argv[1], b'x' * 1000)\n"
    )
    target = tmp_path / "000000003-0123456789abcdef.safetensors"
    assert subprocess.run([sys.executable, "-c", code, str(target)], cwd=ROOT, check=False).returncode == -9
    assert len(names(tmp_path)) == 2  # the good one and a leftover
    other, keeper = fresh(), Keeper(tmp_path)
    assert keeper.load_latest(other.state)
    assert not differing(run.tensors(), other.tensors())
    assert (keeper.damaged, good in names(tmp_path)) == ([], True)
