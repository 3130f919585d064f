"""Every run of a study is done once, whoever shares the folder; what fails is reported and the study goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from weightclass import results, run
from weightclass.errors import UserError
from weightclass.files import Unwritable, read_jsonl, run_lock
from weightclass.study import grid, plan, sheet
from weightclass.study.plan import Short
from weightclass.study.sheet import Sheet

ROOT = Path(__file__).parents[2]
TEXT = """
title = "Widths"
about = "Digits, two widths."
base = "quickstart"
heading = "channels"
seeds = [0, 1]
set = ["train.epochs=2", "model.blocks=1,1", "data.subset=130", "machine.threads=1", "machine.precision=float32"]

[[rows]]
label = "narrow"
set = ["model.channels=2,4"]
published = 99.5
source = "a paper"
assumed = ["the rate"]

[[rows]]
label = "wide"
set = ["model.channels=4,8"]
note = "twice as wide"
"""
DIVERGES = """
[[rows]]
label = "diverges"
set = ["model.channels=4,8", "model.norm=none", "optimizer.lr=100", "train.epochs=20"]
"""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than these runs, and have tests of their own."""
    monkeypatch.setattr("weightclass.run.draw", lambda *_: None)
    monkeypatch.setattr("weightclass.study.figure.save", lambda *_: [])
    monkeypatch.setattr("weightclass.study.grid.POLL", 0.05)


def written(tmp_path: Path, text: str = TEXT) -> str:
    path = tmp_path / "widths.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def study(tmp_path: Path, text: str = TEXT, *settings: str, **how: object) -> Sheet:
    ((told, _),), stopped = grid.run_studies([written(tmp_path, text)], *settings, out=tmp_path, quiet=True, **how)  # type: ignore[arg-type]
    assert stopped is None
    return told


def finished(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("*/result.json"))


def test_a_study_trains_every_row_with_every_seed_and_tells_what_they_came_to(tmp_path: Path) -> None:
    told = study(tmp_path)
    assert (told.name, told.stem, told.pilot, told.split, told.compare) == ("widths", "widths", "", "test", 0)
    narrow, wide = told.lines
    assert (narrow.published, narrow.source, narrow.assumed, wide.note) == (
        99.5,
        "a paper",
        ("the rate",),
        "twice as wide",
    )
    assert (narrow.recipe, narrow.settings, narrow.over_budget) == ("quickstart", ("model.channels=2,4",), False)
    for line in told.lines:
        assert [each.seed for each in line.runs] == [each.seed for each in line.results] == [0, 1]
        for each in line.runs:
            assert each.result == results.read(tmp_path / each.folder)
            assert [record["epoch"] for record in each.curve] == [1, 2]
            assert {"test_accuracy", "test_loss", "train_loss"} <= each.curve[0].keys()
            assert each.result and line.params == each.result.params
    assert sheet.read(tmp_path / "studies" / "widths") == told


def test_what_is_finished_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = study(tmp_path)
    monkeypatch.setattr("weightclass.run.carry_out", None)
    assert study(tmp_path) == first


def test_equal_settings_are_one_run(tmp_path: Path) -> None:
    told = study(tmp_path, TEXT + '\n[[rows]]\nlabel = "as wide"\nset = ["model.channels=4,8"]\n', seeds=(5,))
    assert len(finished(tmp_path)) == 2
    assert told.lines[1].runs == told.lines[2].runs


def test_equal_settings_are_one_run_under_another_recipe_s_name_too(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text('base = "quickstart"\n', encoding="utf-8")
    other = (tmp_path / "other.toml").as_posix()
    row = f'\n[[rows]]\nlabel = "as wide"\nrecipe = "{other}"\nset = ["model.channels=4,8"]\n'
    told = study(tmp_path, TEXT + row, seeds=(5,))
    assert len(finished(tmp_path)) == 2
    assert told.lines[1].runs[0].result == told.lines[2].runs[0].result
    alone = study(tmp_path, TEXT.partition("[[rows]]")[0] + row, seeds=(5,))
    assert len(finished(tmp_path)) == 2 and alone.lines[0].results == told.lines[1].results


def test_a_pilot_says_so_in_its_names_and_keeps_off_the_test_set(tmp_path: Path) -> None:
    told = study(tmp_path, TEXT, "train.ema=0", short=Short(epochs=1), seeds=(0,))
    assert told.command.endswith("widths.toml train.ema=0 --epochs 1 --seeds 0")
    assert (told.pilot, told.stem, told.split) == ("1 epochs, train.ema=0", "widths-PILOT", "validation")
    (folder,) = (tmp_path / "studies").iterdir()
    assert "PILOT" in folder.name and (folder / "widths-PILOT.md").exists()
    assert all(result.test_readings == 0 for line in told.lines for result in line.results)
    assert not study(tmp_path, TEXT, "machine.threads=1", seeds=(0,)).pilot


def test_a_failed_run_is_tried_twice_and_the_study_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = study(tmp_path, TEXT + DIVERGES, seeds=(0,))
    narrow, wide, diverges = told.lines
    assert len(narrow.results) == len(wide.results) == 1 and not diverges.results
    assert diverges.runs[0].failure.startswith("the loss is no longer a number at step")
    said = capsys.readouterr().out
    assert "diverges, seed 0: failed, to be tried again after the others: " in said
    assert "diverges, seed 0: failed 2 times (remove " in said
    failure = tmp_path / diverges.runs[0].folder / grid.FAILED
    assert json.loads(failure.read_bytes())["tries"] == 2
    study(tmp_path, TEXT + DIVERGES, seeds=(0,))  # again: it is left alone
    assert json.loads(failure.read_bytes())["tries"] == 2


def test_a_failure_that_was_luck_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out, calls = run.carry_out, []

    def unlucky(*args: object) -> run.Outcome:
        calls.append(args)
        if len(calls) == 1:
            raise MemoryError("a bad moment")
        return carry_out(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("weightclass.run.carry_out", unlucky)
    told = study(tmp_path, seeds=(0,))
    assert all(len(line.results) == 1 and not line.runs[0].failure for line in told.lines)


def test_a_full_disk_ends_the_study_and_is_no_run_s_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> run.Outcome:
        raise Unwritable("disk full: free some space and run the same command again")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="disk full"):
        patched.setattr("weightclass.run.carry_out", full)
        study(tmp_path)
    assert not list(tmp_path.glob("*/failed.json"))


def test_a_damaged_result_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path, seeds=(0,))
    finished(tmp_path)[0].joinpath("result.json").write_text("{", encoding="utf-8")
    monkeypatch.setattr("weightclass.run.carry_out", None)
    with pytest.raises(UserError, match=r"result\.json: not a result of this version"):
        study(tmp_path)


def test_a_run_that_has_succeeded_elsewhere_has_not_failed(tmp_path: Path) -> None:
    study(tmp_path, seeds=(0,))
    for folder in finished(tmp_path):
        folder.joinpath(grid.FAILED).write_text('{"tries": 2, "why": "luck"}', encoding="utf-8")
    assert not any(each.failure for line in study(tmp_path, seeds=(0,)).lines for each in line.runs)


def test_ctrl_c_while_a_run_finishes_ends_the_study_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightclass.run.draw", lambda *_: signal.raise_signal(signal.SIGINT))
    ((told, _),), stopped = grid.run_studies([written(tmp_path)], out=tmp_path, quiet=True)
    assert stopped == "Ctrl-C" and [len(line.results) for line in told.lines] == [1, 0]


def test_studies_of_one_name_and_pilots_of_a_long_one(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match="two of one name"):
        grid.run_studies([written(tmp_path), written(tmp_path / "sub")], out=tmp_path)
    long = ["train.clip_norm=1.5", "train.label_smoothing=0.125", "optimizer.weight_decay=0.00025"]
    for last in ("optimizer.momentum=0.5", "optimizer.momentum=0.25"):
        grid.run_studies([written(tmp_path)], *long, last, out=tmp_path, time_limit=0.0)
    assert len(list(tmp_path.glob("studies/*/sheet.json"))) == 2


def test_a_time_limit_stops_the_study_and_the_same_call_goes_on(tmp_path: Path) -> None:
    name = written(tmp_path)
    ((told, _),), stopped = grid.run_studies([name], out=tmp_path, quiet=True, time_limit=0.0)
    assert stopped == "time limit" and not any(line.results for line in told.lines)
    assert all(len(line.results) == 2 for line in study(tmp_path).lines)


def test_a_run_that_another_holds_is_left_to_it_and_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, done = plan.cells(plan.load(written(tmp_path)), [0]), []
    with ExitStack() as other:
        other.enter_context(run_lock(grid.folder_of(cells[0], tmp_path)))

        def sleep(_: float) -> None:
            done.append(len(finished(tmp_path)))
            other.close()

        monkeypatch.setattr("weightclass.study.grid.time.sleep", sleep)
        told = study(tmp_path, seeds=(0,))
    assert done == [1]  # it waited only when all else was done
    assert [len(line.results) for line in told.lines] == [1, 1]


@pytest.mark.slow
def test_two_jobs_share_the_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = study(tmp_path, jobs=2)
    assert all(len(line.results) == 2 for line in told.lines)
    said = re.findall(r"(?m)^\[\d/4\] ", capfd.readouterr().out)
    assert len(said) == len(finished(tmp_path)) == 4  # each trained once


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_helpers_end_with_the_first_process(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "weightclass", "study", written(tmp_path), "train.epochs=100000", "--jobs", "2"]
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen([*command, "--out", str(tmp_path)], cwd=ROOT, stdout=log, stderr=log)
    while len(locks := list(tmp_path.glob("*/.lock.pid"))) < 2:
        time.sleep(0.05)
        assert first.poll() is None
    first.send_signal(number)
    first.wait(timeout=60)
    until = time.monotonic() + 60
    while any(lock.exists() and lock.read_text().strip() != str(first.pid) for lock in locks):
        time.sleep(0.05)
        assert time.monotonic() < until
    saved = len(list(tmp_path.glob("*/checkpoint/*.safetensors")))
    assert saved >= (2 if number == signal.SIGTERM else 1) and b"Traceback" not in (tmp_path / "log").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.slow
def test_two_processes_one_of_them_killed(tmp_path: Path) -> None:
    """The one that is left does the dead one's rows, from its checkpoints, and the bits are the same."""
    text = TEXT.replace("train.epochs=2", "train.epochs=12")
    name = written(tmp_path, text)

    def start(out: Path, log: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "weightclass", "study", name, "train.checkpoint_seconds=0.05", "--quiet"]
        with (tmp_path / log).open("wb") as file:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            return subprocess.Popen([*command, "--out", str(out)], cwd=ROOT, env=environment, stdout=file)

    one, other = start(tmp_path / "shared", "one.log"), start(tmp_path / "shared", "other.log")
    while not any(
        path.name == ".lock.pid" and path.read_text().strip() == str(one.pid)
        for path in tmp_path.glob("shared/*/.lock.pid")
    ):
        time.sleep(0.01)
        assert one.poll() is None
    while not list(tmp_path.glob("shared/*/checkpoint/*.safetensors")):
        time.sleep(0.01)
    one.send_signal(signal.SIGKILL)
    one.wait()
    assert other.wait(timeout=300) == 0
    alone = start(tmp_path / "alone", "alone.log")
    assert alone.wait(timeout=300) == 0
    assert [path.name for path in finished(tmp_path / "shared")] == [path.name for path in finished(tmp_path / "alone")]
    assert len(finished(tmp_path / "shared")) == 4
    for folder in finished(tmp_path / "alone"):
        assert (folder / "model.safetensors").read_bytes() == (
            tmp_path / "shared" / folder.name / "model.safetensors"
        ).read_bytes()
    logs = (tmp_path / "one.log").read_text() + (tmp_path / "other.log").read_text()
    assert len(re.findall(r"(?m)^\[\d/4\] ", logs)) == 4  # every run was done once


@pytest.fixture
def rayless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's token in a home of its own, one thread, and what `helping` sets forgotten afterwards."""
    pytest.importorskip("ray")
    for name, value in {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AUTH_MODE", "USAGE_STATS_ENABLED", "DEDUP_LOGS", "COLOR_PREFIX"):
        monkeypatch.setenv(f"RAY_{name}", "0")
    monkeypatch.delenv("RAY_AUTH_MODE")


def assert_same(one: Path, other: Path) -> None:
    """Equal runs, weights and metrics bit for bit, their times apart."""
    assert [path.name for path in finished(one)] == [path.name for path in finished(other)]
    for folder in finished(one):
        twin = other / folder.name
        assert (folder / "model.safetensors").read_bytes() == (twin / "model.safetensors").read_bytes()
        one_s, other_s = (
            [record | {"time": 0} for record in read_jsonl(each / "metrics.jsonl")] for each in (folder, twin)
        )
        assert one_s == other_s
        cards = [results.read(each) for each in (folder, twin)]
        assert cards[0] and cards[1] and cards[0].scorecard == cards[1].scorecard


@pytest.mark.slow
@pytest.mark.usefixtures("rayless")
def test_ray_s_workers_come_to_the_same_bits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study(tmp_path, jobs=2, ray="local")
    said = capfd.readouterr()
    assert len(re.findall(r"(?m)^\(worker pid=\d+\) \[\d/4\] ", said.out)) == 4 and not said.err
    (tmp_path / "alone").mkdir()
    study(tmp_path / "alone")
    assert len(finished(tmp_path)) == 4 and not list(tmp_path.glob(".at-work-*"))
    assert_same(tmp_path, tmp_path / "alone")


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.slow
@pytest.mark.usefixtures("rayless")
def test_a_worker_killed_on_a_cluster_of_two_nodes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its run is gone on with, and nothing is done twice."""
    from ray.cluster_utils import Cluster

    def kill() -> None:
        while not list((tmp_path / "shared").glob("*/checkpoint/*.safetensors")):
            time.sleep(0.01)
        pid = next(iter((tmp_path / "shared").glob("*/.lock.pid"))).read_text(encoding="utf-8")
        killed.append(int(pid))
        os.kill(int(pid), signal.SIGKILL)

    text, killed = TEXT.replace("train.epochs=2", "train.epochs=12"), []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        (tmp_path / "shared").mkdir()
        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        study(tmp_path / "shared", text, "train.checkpoint_seconds=0.05", jobs=2, ray=cluster.address)
        thread.join()
    finally:
        cluster.shutdown()
    said = re.findall(r"(?m)^\(worker pid=(\d+)\) \[\d/4\] ", capfd.readouterr().out)
    assert len(said) == 4 and str(killed[0]) not in said
    (tmp_path / "alone").mkdir()
    study(tmp_path / "alone", text, "train.checkpoint_seconds=0.05")
    assert_same(tmp_path / "shared", tmp_path / "alone")


def test_a_mistake_is_one_line_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 'narrow': recipe quickstart: unknown key train\.epoch"):
        grid.run_studies([written(tmp_path)], "train.epoch=3", out=tmp_path)
    assert not (tmp_path / "studies").exists()
