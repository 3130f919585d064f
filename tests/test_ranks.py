"""Any number of ranks trains the same network: by threads that stand for them at every test, by processes when slow.

The promises: the same state to rounding after every step, one voice, and nobody who waits for the dead.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference import ranked, tiny_run
from tests.reference.threads import Threads
from weightclass import ranks
from weightclass.errors import UserError
from weightclass.training import loop

ROOT = Path(__file__).parents[1]
slow = pytest.mark.slow


def assert_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Each tensor to `tolerance`, relative to its largest entry."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        off = (tensor - theirs[name]).abs().max()
        assert off <= tolerance * theirs[name].abs().max(), (name, off)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *[("sam", 2), ("micro", 2)],
        *[pytest.param(name, 2, marks=slow) for name in ranked.VARIANTS if name not in ("sam", "micro")],
        *[pytest.param("all", 3, marks=slow), pytest.param("groups", 5, marks=slow)],
    ],
)
def test_ranks_train_what_one_process_trains(
    name: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ranked.trained(tmp_path / "one", *ranked.VARIANTS[name])
    many = Threads(monkeypatch, size).run(lambda _: ranked.trained(tmp_path / "many", *ranked.VARIANTS[name]))
    for tensors in many:
        assert_alike(tensors, one, 1e-9)
    assert one["model/linear.weight"].isfinite().all()


def test_a_process_alone_asks_nobody() -> None:
    tensor = torch.ones(2)
    ranks.add_([tensor])
    assert tensor.tolist() == [1, 1]
    assert (ranks.agree(None), ranks.agree("Ctrl-C")) == (None, "Ctrl-C")
    assert (ranks.tell(lambda: b"told"), ranks.in_turn(lambda: 7)) == (b"told", 7)
    with ranks.joined():
        assert (ranks.here.rank, ranks.here.size) == (0, 1)
    assert not torch.distributed.is_initialized()


def test_alone_is_over_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "here", ranks.Here(1, 4, 1, 2))
    with pytest.raises(UserError), ranks.alone():
        assert (ranks.here.size, ranks.here.local_size) == (1, 1)
        raise UserError("x")
    assert ranks.here == ranks.Here(1, 4, 1, 2)


def test_memory_that_runs_out_on_several_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(loop, "_gradients", too_much)
    run = tiny_run.Run(loop.Train(batch_size=16))
    with pytest.raises(UserError, match=r"step of 16 images: choose a smaller train.batch_size, set train.micro_batch"):
        Threads(monkeypatch, 2).run(lambda _: run.fit(tmp_path))


# --- processes ---------------------------------------------------------------------------------------------

TINY = ("quickstart", "model.blocks=1,1", "model.channels=4,8", "optimizer.lr=0.02", "train.checkpoint_seconds=0.05")


def command(size: int, *words: str) -> list[str]:
    """`words` (a module's, or a file's) on that many ranks."""
    many = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size))
    return [sys.executable, *(many if size > 1 else ()), *words]


def start(size: int, *words: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(size, *words), cwd=ROOT, env=env, text=True, encoding="utf-8", **pipes)


def train(size: int, out: Path, *settings: str, epochs: int = 6) -> subprocess.Popen[str]:
    return start(size, "-m", "weightclass", "train", *TINY, f"train.epochs={epochs}", *settings, "--out", str(out))


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def records(out: Path) -> list[dict[str, Any]]:
    [path] = out.glob("*/metrics.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_same_curve(ours: Path, theirs: Path) -> None:
    """To what float32 makes of another order of sums; every epoch once."""
    assert [record["epoch"] for record in records(ours)] == [record["epoch"] for record in records(theirs)]
    for mine, other in zip(records(ours), records(theirs), strict=True):
        assert mine["train_loss"] == pytest.approx(other["train_loss"], rel=2e-3)
        assert mine["train_accuracy"] == pytest.approx(other["train_accuracy"], abs=5e-3)


@slow
def test_processes_train_what_one_does(tmp_path: Path) -> None:
    for size in (1, 2):
        code, _, err = ended(start(size, str(ROOT / "tests/reference/ranked.py"), str(tmp_path / f"{size}.pt")))
        assert code == 0, err
    one, two = (torch.load(tmp_path / f"{size}.pt", weights_only=True) for size in (1, 2))
    for name in ranked.VARIANTS:
        assert_alike(two[name], one[name])


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, and what it said."""
    out = tmp_path_factory.mktemp("untouched")
    code, said, err = ended(train(1, out))
    assert (code, err) == (0, "")
    (out / "said.txt").write_text(said, encoding="utf-8")
    return out


@slow
def test_the_command_on_two_ranks(untouched: Path, tmp_path: Path) -> None:
    code, said, err = ended(train(2, tmp_path))
    assert (code, err.count("error")) == (0, 0)
    assert_same_curve(tmp_path, untouched)
    assert len(said.splitlines()) == len((untouched / "said.txt").read_text(encoding="utf-8").splitlines())  # one voice
    code, said, _ = ended(train(2, tmp_path))
    assert (code, said.count("finished already")) == (0, 1)


@slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_stopped_and_killed_and_continued_on_other_numbers(untouched: Path, tmp_path: Path) -> None:
    sizes, how = (2, 1, 2, 1), (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL, None)
    for size, end in zip(sizes, how, strict=True):
        before = set(tmp_path.glob("*/checkpoint/*.safetensors"))
        process = train(size, tmp_path)
        if end:
            while process.poll() is None and not set(tmp_path.glob("*/checkpoint/*.safetensors")) - before:
                time.sleep(0.01)
            [lock] = tmp_path.glob("*/.lock.pid")
            os.kill(int(lock.read_text(encoding="utf-8")), end)  # rank 0 alone is asked, or dies
            started = time.monotonic()
        code, said, err = ended(process)
        assert (code != 0) == (end is not None), err
        assert said.count("stopped (SIGTERM)") == (end == signal.SIGTERM)
        assert said.count("continuing in") == (before != set())
        assert time.monotonic() - started < 20  # no rank waits for the dead
    assert "started with ranks 2 (now 1)" in said
    assert_same_curve(tmp_path, untouched)


@slow
def test_a_time_limit_is_kept_by_all(tmp_path: Path) -> None:
    code, said, err = ended(train(2, tmp_path, "--time-limit", "9s", epochs=4000))
    assert (code, said.count("stopped (time limit)")) == (0, 1), err


@slow
def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    code, _, err = ended(train(3, tmp_path, "train.bn_group=32"))
    assert code != 0
    assert err.count("error: ") == 1, err
    assert "error: a batch of 64 images cannot be shared out to 3 ranks in whole groups of train.bn_group = 32" in err


FAILING = """
import sys
from weightclass import cli, ranks, session
from weightclass.errors import UserError

serve = session.Session.batches
def failing(self, epoch, first):
    for batch in serve(self, epoch, first):
        if ranks.here.rank == 1 and self.state.step == 5:
            raise UserError("this rank's disk is gone")
        yield batch
session.Session.batches = failing
cli.main(sys.argv[1:])
"""


@slow
def test_a_rank_that_fails_ends_all_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING, encoding="utf-8")
    process = start(2, str(tmp_path / "failing.py"), "train", *TINY, "train.epochs=3", "--out", str(tmp_path / "out"))
    code, _, err = ended(process)
    assert code != 0
    assert "error: rank 1: this rank's disk is gone\n" in err
    assert "lost the others" not in err
