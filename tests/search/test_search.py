"""A search from its recipe to the training of what it found: by one process, by several, killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.reference import sheets
from tests.reference.trainings import Trainings
from weightclass import config, recipe, results, run
from weightclass.data import sources
from weightclass.errors import UserError
from weightclass.files import Busy
from weightclass.search import search as module
from weightclass.search import sheet, trials
from weightclass.search.search import brief, planned, run_search
from weightclass.search.trials import Search
from weightclass.stopping import Stopper

ROOT = Path(__file__).parents[2]
WORDS = ("quickstart", "train.epochs=6", "data.subset=200", "budget.params=100k")


def plan(
    tmp_path: Path, *settings: str, count: int = 3, epochs: int = 2, seed: int = 0, over: Any = ("model",)
) -> Search:
    return planned(WORDS[0], [*WORDS[1:], *settings], count, epochs, 0, over, 0.0, seed, tmp_path, "")


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """Trials are made up, milliseconds too; trainings in full have no one to watch them, the final one holds no image
    out."""
    held_out = recipe.load(*WORDS, "data.validation=0.1").recipe.data
    instead = Trainings(sources.load(held_out).digest())
    finals: list[Any] = []
    hopeless: set[str] = set()

    def carry_out(named: Any, out: Path, stopper: Any, quiet: bool = False, watch: Any = None) -> run.Outcome:
        if watch:
            return instead(named, out, stopper, quiet, watch)
        if not named.recipe.data.validation:
            finals.append(named)
            return run.Outcome(out / "final", sheets.result(0.75))
        folder = run.folder_of(named, recipe.fingerprint(named.recipe, instead.digest), out)
        instead.trained.append(folder.name)
        if hopeless and hopeless <= set(named.overrides):
            raise MemoryError
        result = sheets.result(int(folder.name[-2:], 16) / 256, n=18, split="validation")
        results.write(folder, result)
        return run.Outcome(folder, result)

    monkeypatch.setattr(run, "carry_out", carry_out)
    monkeypatch.setattr(module, "milliseconds", lambda models, found: [1.0 + n for n in range(len(models))])
    instead.finals, instead.hopeless = finals, hopeless  # type: ignore[attr-defined]
    return instead


def test_it_ends_with_a_recipe_and_its_full_training(tmp_path: Path, training: Trainings) -> None:
    told, folder, stopped = run_search(*WORDS, count=4, epochs=2, over=["model", "optimizer"], out=tmp_path, quiet=True)
    assert stopped is None
    assert [row.number for row in told.rows] == [0, 1, 2, 3]
    best = told.best
    assert best
    assert best.accuracy == max(row.accuracy or 0 for row in told.done)
    assert sheet.read(folder) == told
    found = recipe.load(str(folder / "quickstart-found.toml"))
    asked = recipe.load(*WORDS).recipe
    assert found.recipe.train == asked.train, "in full"
    assert found.recipe.data == asked.data, "nothing held out"
    assert recipe.weigh(found.recipe).params == best.params < 100_000
    [final] = training.finals  # type: ignore[attr-defined]
    assert final == found
    assert told.final
    assert told.final_folder == "final"
    assert told.command == (
        "weightclass search quickstart train.epochs=6 data.subset=200 budget.params=100k --trials 4 --finalists 3 "
        "--epochs 2 --over model,optimizer"
    )


def test_the_best_are_trained_in_full_and_the_held_out_images_choose(tmp_path: Path, training: Trainings) -> None:
    how: dict[str, Any] = {"count": 5, "epochs": 2, "over": ["model"], "out": tmp_path, "quiet": True}
    told, folder, _ = run_search(*WORDS, finalists=2, **how)
    by_trial = sorted(told.rows, key=lambda row: (-(row.accuracy or 0) * (row.state == "done"), row.macs))
    assert {row.number for row in told.rows if row.full is not None} == {row.number for row in by_trial[:2]} | {0}
    assert told.full_epochs == 6 > told.epochs
    assert told.best
    assert told.best.full == max(row.full for row in told.rows if row.full is not None)
    text = (folder / "quickstart-found.toml").read_text(encoding="utf-8")
    assert f"{told.best.full:.2%} after 6" in text
    assert " --trials 5 --finalists 2 --epochs 2 " in told.command
    trained = list(training.trained)
    assert run_search(*WORDS, finalists=2, **how)[0] == told
    assert training.trained == trained
    none, _, _ = run_search(*WORDS, finalists=0, **how)
    assert {row.full for row in none.rows} == {None}


def test_a_finalist_that_fails_is_left_and_the_others_decide(tmp_path: Path, training: Trainings) -> None:
    how: dict[str, Any] = {"count": 4, "epochs": 2, "over": ["model"], "out": tmp_path, "quiet": True}
    first, _, _ = run_search(*WORDS, finalists=0, final=False, **how)
    poor = next(row for row in first.done if row.number)
    training.hopeless.update(poor.settings)  # type: ignore[attr-defined]
    told, _, stopped = run_search(*WORDS, finalists=2, **how)
    assert stopped is None
    assert told.rows[poor.number].full is None
    assert told.best
    assert told.best.full is not None
    assert training.finals  # type: ignore[attr-defined]


def test_a_trial_of_another_kind_of_optimizer_loses_the_settings_of_the_first() -> None:
    overrides = ["optimizer.momentum=0.95", "schedule.peak=0.3", "train.ema=0.9"]
    laid = trials.laid(overrides, ["optimizer.name=adamw", "schedule.peak=0.1"])
    assert laid == ["train.ema=0.9", "optimizer.name=adamw", "schedule.peak=0.1"]
    recipe.load(WORDS[0], *laid)


def test_the_same_call_again_trains_nothing_and_more_trials_go_on(tmp_path: Path, training: Trainings) -> None:
    how: dict[str, Any] = {"epochs": 2, "over": ["model"], "out": tmp_path, "quiet": True, "final": False}
    told, folder, _ = run_search(*WORDS, count=2, **how)
    before = list(training.trained)
    again, _, _ = run_search(*WORDS, count=2, **how)
    assert (again, training.trained) == (told, before)
    more, place, _ = run_search(*WORDS, count=4, **how)
    assert place == folder
    assert [replace(row, ms=None) for row in more.rows[:2]] == [replace(row, ms=None) for row in told.rows]
    assert [row.number for row in more.rows] == [0, 1, 2, 3]
    assert Counter(training.trained).most_common(1)[0][1] == 1
    assert not training.finals  # type: ignore[attr-defined]


def test_no_final_training_while_another_machine_still_has_a_trial(
    tmp_path: Path, training: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    work = plan(tmp_path, count=2)
    study = trials.opened(work)
    trial, _ = trials.take(study, work, Stopper()) or pytest.fail("none")
    trial.set_user_attr("home", "elsewhere")
    told, _, stopped = run_search(*WORDS, count=2, epochs=2, over=["model"], out=tmp_path, quiet=True)
    assert stopped is None
    assert [row.state for row in told.rows] == ["open", "done"]
    assert not training.finals  # type: ignore[attr-defined]
    assert "waits for trial 0 on another machine" in capsys.readouterr().out


def test_no_final_training_while_a_trial_has_no_settings_yet(
    tmp_path: Path, training: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 came before it was known whose it is: it is waited for, adopted, and only then the finalists begin."""
    study = trials.opened(plan(tmp_path, count=2))
    study.ask()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        monkeypatch.setattr(trials, "FRESH", -1.0)

    monkeypatch.setattr(module.time, "sleep", sleep)
    told, _, _ = run_search(*WORDS, count=2, epochs=2, over=["model"], out=tmp_path, quiet=True)
    assert waits
    assert [row.state for row in told.rows] == ["done", "done"]
    assert {row.full is None for row in told.rows} == {False}
    assert len(training.finals) == 1  # type: ignore[attr-defined]


def test_no_final_training_before_every_finalist_is_at_its_end(
    tmp_path: Path, training: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last trial ended on another machine just after this one had asked."""
    monkeypatch.setattr(module.grid, "work", lambda *_: None)
    told, _, _ = run_search(*WORDS, count=2, epochs=2, over=["model"], out=tmp_path, quiet=True)
    assert told.best
    assert not training.finals  # type: ignore[attr-defined]


def test_the_table_is_there_before_the_final_training_and_a_foreign_one_is_no_obstacle(
    tmp_path: Path, training: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"count": 2, "epochs": 2, "over": ["model"], "out": tmp_path, "quiet": True}

    def fails(*_: Any) -> None:
        raise UserError("the loss is not finite")

    with monkeypatch.context() as patch:
        patch.setattr(module, "finish", fails)
        with pytest.raises(UserError, match="not finite"):
            run_search(*WORDS, **how)
    [path] = tmp_path.glob("searches/*/search.json")
    assert sheet.read(path.parent).best
    path.write_text('{"name": "of another version"}', encoding="utf-8")
    assert run_search(*WORDS, **how)[0].final


def test_a_time_limit_holds_while_another_process_trains_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: Any) -> None:
        raise Busy("another process")

    found = tmp_path / "found.toml"
    found.write_text(config.to_toml(recipe.load(*WORDS).recipe), encoding="utf-8")
    monkeypatch.setattr(run, "carry_out", busy)
    assert module.finish(found, tmp_path, Stopper(time.monotonic()), True).stopped == "time limit"


def test_the_final_training_takes_the_images_held_out_too(tmp_path: Path, training: Trainings) -> None:
    how: dict[str, Any] = {"count": 2, "epochs": 2, "over": ["model"], "out": tmp_path, "quiet": True}
    run_search(*WORDS, "data.validation=0.1", **how)
    [final] = training.finals  # type: ignore[attr-defined]
    assert final.recipe.data.validation == 0


def test_what_changes_a_trial_makes_another_search_and_nothing_else_does(tmp_path: Path) -> None:
    first = plan(tmp_path)
    others = [
        plan(tmp_path, "train.seed=1"),
        plan(tmp_path, epochs=3),
        plan(tmp_path, seed=1),
        plan(tmp_path, over=("model", "augment")),
        plan(tmp_path, "budget.macs=5M"),
    ]
    assert len({each.name for each in (first, *others)}) == 6
    assert first.name == plan(tmp_path, count=9).name == plan(tmp_path / "x", "machine.threads=1").name
    assert first.base.recipe.train.epochs == 2
    assert first.base.recipe.data.validation == 0.1
    assert plan(tmp_path, "data.validation=50").base.recipe.data.validation == 50


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--over modle: did you mean model\?$"):
        plan(tmp_path, over=("modle",))
    with pytest.raises(UserError, match=r"^--over model,model: one stands there twice$"):
        plan(tmp_path, over=("model", "model"))
    assert not plan(tmp_path, "data.watch_test=true").base.recipe.data.watch_test


@pytest.mark.parametrize(
    ("url", "hidden"),
    {
        "postgresql://me:secret@host:5432/db": "postgresql://me:...@host:5432/db",
        "sqlite:///a.db": "sqlite:///a.db",
        "postgresql://host/db": "postgresql://host/db",
        "postgresql://host/db?password=secret&user=me": "postgresql://host/db?password=...&user=me",
        "": "",
    }.items(),
)
def test_a_password_is_not_written_down(url: str, hidden: str) -> None:
    assert module._hidden(url) == hidden


# --- for real ----------------------------------------------------------------------------------------------


def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    """A process that searches among tiny networks, one thread."""
    words = (*WORDS, "model.blocks=1,1", "model.channels=4,8", "machine.threads=1", "train.checkpoint_seconds=0.2")
    flags = (
        "--trials",
        "4",
        "--epochs",
        "4",
        "--finalists",
        "1",
        "--over",
        "model",
        "--out",
        str(out),
        "--quiet",
        *more,
    )
    command = [sys.executable, "-m", "weightclass", "search", *words, *flags]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def until_training(out: Path) -> None:
    """Wait until the first epoch of a trial has been recorded."""
    end = time.monotonic() + 300
    while not list(out.glob("*/metrics.jsonl")):
        assert time.monotonic() < end
        time.sleep(0.1)


def outcome(out: Path) -> tuple[list[Any], Any]:
    """What must not depend on how often it was broken off: trials less their milliseconds, and the final weights."""
    [folder] = [path for path in (out / "searches").iterdir() if path.is_dir()]
    told = sheet.read(folder)
    rows = [msgspec.structs.replace(row, ms=None) for row in told.rows]
    assert told.final
    return rows, (out / told.final_folder / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_killed_again_and_again_it_finds_the_same(tmp_path: Path) -> None:
    assert start(tmp_path / "whole").wait(timeout=600) == 0
    kills = 0
    while (process := start(tmp_path / "killed")).poll() is None:
        try:
            process.wait(timeout=5 + kills)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert process.returncode == 0
    assert kills >= 2
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")


def trained_once(out: Path) -> None:
    """Four trials with an end, each of its own settings and run, none by two processes."""
    rows, _ = outcome(out)
    assert [row.number for row in rows] == list(range(4))
    assert {row.state for row in rows} <= {"done", "pruned"}
    for row in rows:
        epochs = [record["epoch"] for record in map(msgspec.json.decode, lines(out / row.folder / "metrics.jsonl"))]
        assert epochs == list(range(1, row.epochs + 1))


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_two_processes_on_one_storage_lose_and_double_nothing(tmp_path: Path) -> None:
    both = [start(tmp_path), start(tmp_path)]
    until_training(tmp_path)
    both[0].send_signal(signal.SIGKILL)  # its trial is taken over by the other one
    both[0].wait()
    third = start(tmp_path)
    assert [process.wait(timeout=600) for process in (both[1], third)] == [0, 0]
    trained_once(tmp_path)


@pytest.fixture
def database(tmp_path: Path) -> Any:
    """A real PostgreSQL of its own, where the machine has one."""
    found = [Path(path).parent for path in (shutil.which("initdb"), shutil.which("pg_ctl")) if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if not found:
        pytest.skip("no PostgreSQL here")
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    folder = tmp_path / "postgres"
    folder.mkdir()
    for above in (folder, *folder.parents[:3]):
        above.chmod(0o755)
    if user:
        shutil.chown(folder, "postgres")
    control = [*user, str(found[0] / "pg_ctl"), "-D", f"{folder}/data", "-w"]
    subprocess.run([*user, str(found[0] / "initdb"), "-D", f"{folder}/data", "-U", "me", "-A", "trust"], check=True)
    options = f"-k {folder} -h '' -F"
    subprocess.run([*control, "-o", options, "-l", f"{folder}/log", "start"], check=True)
    yield f"postgresql://me@/postgres?host={folder}"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True)


@pytest.mark.slow
def test_a_postgresql_database_serves_as_well(tmp_path: Path, database: str) -> None:
    """Two processes on the database; one is killed, and its trial taken over."""
    out = tmp_path / "out"
    both = [start(out, "--storage", database), start(out, "--storage", database)]
    until_training(out)
    both[0].kill()
    both[0].wait()
    third = start(out, "--storage", database)
    assert [process.wait(timeout=600) for process in (both[1], third)] == [0, 0]
    trained_once(out)
    assert not list(out.rglob("journal.log"))


def test_networks_in_short() -> None:
    kinds = ["", "model.name=mobilenetv2", "model.name=airbench", "model.name=mbconv"]
    told = [brief(recipe.load("small-cpu", *filter(None, [kind])).recipe) for kind in kinds]
    first, *others = ["2,2,2,2 x 16,32,64,128", "mobilenetv2 x 1", "airbench x 64,256,256", "mbconv x 2,3,3 x 16,24,40"]
    assert told == [first, *others]
