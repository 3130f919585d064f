"""The promise at the heart: killed at any moment, again and again, the same command ends with the same bits.

Every run here is the real command in a process of its own, ended by SIGKILL. `kills` counts the moments:
"mid-epoch" (the run goes on from a step inside an epoch), "in a write" (a half-written checkpoint was left).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

ROOT = Path(__file__).parents[1]
STEPS = 3  # an epoch: 130 images in batches of 50
TINY = (
    *("quickstart", "model.blocks=1,1", "model.channels=4,8", "data.subset=130", "train.batch_size=50"),
    *("augment.ops=crop(1),cutout(2)", "model.dropout=0.1", "machine.threads=1"),
)
OFTEN = "train.checkpoint_seconds=0.05"
VARIANTS = {
    "sgd+ema": ("optimizer.momentum=0.9", "train.ema=0.95"),
    "sam+lookahead": ("train.ema=0", "train.sam=0.05", "train.lookahead=4", "train.clip_value=0.1"),
    "adadelta": ("optimizer.name=adadelta", "train.ema=0", "schedule.name=cosine"),
    "adamw": ("optimizer.name=adamw", "train.ema=0.9", "train.micro_batch=20", "train.bn_group=10"),
}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")


class Worker:
    """One command line and the folder it works in."""

    def __init__(self, out: Path, *overrides: str) -> None:
        words = ["train", *TINY, OFTEN, *overrides, "--out", str(out), "--quiet"]
        self.command, self.out = [sys.executable, "-m", "weightclass", *words], out

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def finish(self) -> Path:
        """Run to the end; the run folder."""
        assert self.start().wait(timeout=300) == 0
        [folder] = self.out.iterdir()
        return folder

    def files(self, pattern: str) -> set[str]:
        """Names in the checkpoint folder; hidden ones too."""
        return {path.name for path in self.out.glob(f"*/checkpoint/{pattern}")}

    def kill(self, chance: random.Random, in_write: bool) -> str:
        """Start, kill once a new checkpoint is there, after a moment; what was hit, or "finished" if it was quicker."""
        before = self.files("*.safetensors")
        process = self.start()
        mine = f".*.{process.pid}.tmp"
        moments = [lambda: self.files("*.safetensors") - before, lambda: time.monotonic() > later]
        moments += [lambda: self.files(mine)] * in_write
        for moment in moments:
            while process.poll() is None and not moment():
                time.sleep(0.0005)
            later = time.monotonic() + chance.uniform(0, 0.4)
        process.kill()
        if code := process.wait() + signal.SIGKILL:
            assert code == signal.SIGKILL, "the run failed by itself"
            return "finished"
        step = max(int(name[:9]) for name in self.files("*.safetensors"))
        return "in a write" if self.files(mine) else "mid-epoch" if step % STEPS else "between epochs"


def assert_same_run(folder: Path, reference: Path) -> None:
    """Weights bit for bit, header, records without their times, and the judgement."""
    with safe_open(folder / "model.safetensors", "pt") as one, safe_open(reference / "model.safetensors", "pt") as two:
        assert one.metadata() == two.metadata()
        assert list(one.keys()) == list(two.keys())
        for name in one.keys():  # noqa: SIM118 (not a dict)
            assert one.get_tensor(name).numpy().tobytes() == two.get_tensor(name).numpy().tobytes(), name
    assert records(folder) == records(reference)
    first, second = (json.loads((path / "result.json").read_text()) for path in (folder, reference))
    assert first["scorecard"] == second["scorecard"]
    assert not (folder / "checkpoint").exists()


def records(folder: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def kill_and_compare(tmp_path: Path, overrides: tuple[str, ...], count: int, seed: int) -> Counter[str]:
    """`count` kills, every other one aimed at a write, then the comparison with a run that nobody touched."""
    chance, kills = random.Random(seed), Counter[str]()
    worker, untouched = Worker(tmp_path / "killed", *overrides), Worker(tmp_path / "untouched", *overrides)
    for turn in range(count):
        kills[worker.kill(chance, in_write=turn % 2 == 0)] += 1
    assert not kills["finished"], f"the run is too short for {count} kills: {kills}"
    assert_same_run(worker.finish(), untouched.finish())
    return kills


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    kills = kill_and_compare(tmp_path, (*VARIANTS["sgd+ema"], "train.epochs=120"), count=3, seed=1)
    assert kills["in a write"] + kills["mid-epoch"] >= 1
    assert kills.total() == 3


@pytest.mark.slow
def test_kills_over_the_variants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    total = Counter[str]()
    for seed, (name, overrides) in enumerate(VARIANTS.items()):
        started = time.monotonic()
        kills = kill_and_compare(tmp_path / name, (*overrides, "train.epochs=400"), count=8, seed=seed)
        with capsys.disabled():
            print(f"\n{name}: {kills.total()} kills, {dict(kills)}, {time.monotonic() - started:.0f} s")
        assert kills.total() >= 7
        total += kills
    assert total.total() >= 20
    assert total["mid-epoch"] >= 3
    assert total["in a write"] >= 3


# --- every write, without chance ---------------------------------------------------------------------------

# One interpreter that has imported everything forks a child a session: argv is a plan of kills, then the command.
# A plan is a list of sessions; each is the number of the write (a rename) before which the session dies; 0: none.
FORKS = """
import functools, json, os, signal, sys
from pathlib import Path
import filelock, rich.console, safetensors.torch, sklearn.metrics, torch._dynamo
import weightclass.cli, weightclass.run
from weightclass.data import sources

sources.digits = functools.cache(sources.digits)
sources.digits()  # this and the imports above take most of a session's time: once, before the forks

def session(last, out):
    replace, names = Path.replace, []

    def counted(self, target):
        names.append(target.name)
        if len(names) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = counted
    weightclass.run.draw = lambda *_: None
    try:
        weightclass.cli.main([*sys.argv[2:], "--out", out])
    except SystemExit as end:
        (Path(out) / "writes.json").write_text(json.dumps(names))
        os._exit(end.code)

for number, last in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        session(last, str(number))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-signal.SIGKILL if last else 0), (number, last, status)
"""


def sessions(where: Path, plan: list[tuple[int, int]], variant: str = "sgd+ema") -> None:
    """Run each (folder, write to die before) of `plan` in turn."""
    words = ["train", *TINY, *VARIANTS[variant], "train.epochs=2", "train.checkpoint_seconds=0.001", "--quiet"]
    command = [sys.executable, "-W", "ignore", "-c", FORKS, json.dumps(plan), *words]
    alone = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # a fork takes no other thread along
    subprocess.run(command, cwd=where, env=os.environ | alone, check=True, timeout=300)


def the_run(out: Path) -> Path:
    [folder] = [path for path in out.iterdir() if path.is_dir()]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["sgd+ema", "sam+lookahead"])
def test_killed_before_each_of_its_writes(tmp_path: Path, variant: str) -> None:
    sessions(tmp_path, [(0, 0)], variant)
    names = json.loads((tmp_path / "0" / "writes.json").read_text())
    saves = [name for name in names if name[:9].isdigit()]
    assert {"recipe.toml", "environment.json", "metrics.jsonl", "model.safetensors", "result.json"} < set(names)
    assert [int(name[:9]) for name in saves] == list(range(1, 2 * STEPS + 1))  # every step was saved
    numbers = range(1, len(names) + 1)
    sessions(tmp_path, [pair for number in numbers for pair in ((number, number), (number, 0))], variant)
    for number in numbers:
        assert_same_run(the_run(tmp_path / str(number)), the_run(tmp_path / "0"))


def test_killed_in_every_session_at_its_second_checkpoint(tmp_path: Path) -> None:
    """A session gets on by one step only, and leaves a half-written checkpoint each time."""
    sessions(tmp_path, [(0, 0), (1, 6), *[(1, 4)] * 4, (1, 0)])
    assert_same_run(the_run(tmp_path / "1"), the_run(tmp_path / "0"))


@pytest.mark.slow
def test_the_comparison_sees_one_bit(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    sessions(tmp_path, [(0, 0), (1, 0)])
    path = the_run(tmp_path / "1") / "model.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as handle:
        header = handle.metadata()
    tensors["linear.bias"].view(torch.int32)[0] ^= 1
    save_file(tensors, path, header)
    with pytest.raises(AssertionError, match=r"linear\.bias"):
        assert_same_run(the_run(tmp_path / "1"), the_run(tmp_path / "0"))
