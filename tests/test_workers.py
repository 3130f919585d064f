"""Workers share the cores or a cluster, say what went wrong, and end with the first process."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightclass import cli, workers
from weightclass.errors import UserError
from weightclass.files import atomic_write
from weightclass.stopping import Stopper


class RayError(Exception):
    """As Ray's."""


class Ray:
    """What `workers` uses of the module ray, without processes: a worker is what it returns, or the error it raises."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, *answers: object) -> None:
        self.answers, self.asked, self.options_ = list(answers), [], {}
        self.joined: list[tuple[object, dict[str, Any]]] = []

    def init(self, address: str, **how: object) -> None:
        self.joined.append((address, how))

    def nodes(self) -> list[dict[str, Any]]:
        dead = {"Alive": False, "Resources": {"CPU": 64.0}}
        return [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": True, "Resources": {"CPU": 2.0}}, dead]

    def remote(self, *given: Any) -> Any:
        if self.options_:
            self.asked.append(given)
            return self.answers[len(self.asked) - 1]
        return self

    def options(self, **how: object) -> Ray:
        self.options_ = how
        return self

    def wait(self, running: list[Any], num_returns: int = 1, timeout: float = 0) -> tuple[list[Any], list[Any]]:
        ready = [] if running[0] == "busy" else running[:num_returns]
        time.sleep(0.01)
        return ready, running[len(ready) :]

    def get(self, worker: object) -> object:
        if isinstance(worker, Exception):
            raise worker
        return worker

    def shutdown(self) -> None:
        self.joined.append(("shut", {}))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ray]:
    def faked(*answers: object) -> Ray:
        fake = Ray(*answers)
        monkeypatch.setitem(sys.modules, "ray", fake)
        return fake

    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS", "RAY_COLOR_PREFIX"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(workers, "LOOK", 0.01)
    return faked


def until_stopped(folder: Path, name: str, stopper: Stopper) -> None:
    """Write a line at the start and at the end."""
    atomic_write(folder / f"{name}.start", f"{os.environ['OMP_NUM_THREADS']}")
    while not stopper.reason():
        time.sleep(0.01)
    atomic_write(folder / f"{name}.end", str(stopper.reason()))


def broken(folder: Path, stopper: Stopper) -> None:
    raise ZeroDivisionError("of\nall things")


def refused(folder: Path, stopper: Stopper) -> None:
    raise UserError("disk full")


# --- on this machine ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_helper_works_with_its_share_of_the_cores_and_is_told_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with workers.helping(until_stopped, (tmp_path, "helper"), 2, None, None, tmp_path) as stopper:
        while not (tmp_path / "helper.start").exists():
            time.sleep(0.01)
        assert os.environ["OMP_NUM_THREADS"] == (tmp_path / "helper.start").read_text(encoding="utf-8") == "2"
        assert not stopper.reason() and not (tmp_path / "helper.end").exists()
    assert (tmp_path / "helper.end").read_text(encoding="utf-8") == "SIGTERM"
    assert os.environ["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize(
    ("task", "said"), [(broken, "a helper has ended: ZeroDivisionError: of all things\n"), (refused, "")]
)
def test_what_ends_a_helper_is_one_line_unless_the_first_process_meets_it_too(
    task: Callable[..., object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended() -> object:
        raise EOFError

    workers._help(lambda stopper: task(Path(), stopper), None, SimpleNamespace(recv=ended))  # type: ignore[arg-type]
    assert capsys.readouterr().err == said


# --- on a Ray cluster --------------------------------------------------------------------------------------

NODES = st.lists(
    st.fixed_dictionaries({"CPU": st.integers(0, 8).map(float)}, optional={"GPU": st.integers(0, 3).map(float)}),
    min_size=1,
    max_size=3,
)


def fitting(nodes: list[dict[str, float]], threads: int, gpus: float) -> int:
    """How many workers find room: put on one after another, as a scheduler would."""
    room, count = [dict(node) for node in nodes], 0
    for node in room:
        while node.get("CPU", 0) >= threads and node.get("GPU", 0) + 1e-9 >= gpus:
            node["CPU"] -= threads
            node["GPU"] = node.get("GPU", 0) - gpus
            count += 1
    return count


@given(NODES, st.integers(1, 9))
def test_workers_get_the_largest_share_with_which_all_run_at_once(nodes: list[dict[str, float]], jobs: int) -> None:
    threads, gpus = workers.share(nodes, jobs)
    assert (gpus > 0) == any(node.get("GPU") for node in nodes)
    assert fitting(nodes, threads + 1, gpus) < jobs
    assert threads == 1 or fitting(nodes, threads, gpus) >= jobs


def test_ray_s_workers_do_all_and_this_process_goes_on_when_one_is_done(tmp_path: Path, ray: Any) -> None:
    fake = ray("busy", "")
    fake.wait = lambda running, num_returns=1, timeout=0: (running[-1:], running[:-1])
    with workers.helping(until_stopped, (tmp_path, "ray"), 2, "auto", time.monotonic() + 60, tmp_path / "new"):
        (_, ends, folder, marker), _ = fake.asked
        assert marker.parent == tmp_path / "new" and marker.exists() and folder == Path.cwd()
        assert 50 < ends - time.time() <= 60
        assert fake.options_["num_cpus"] == 2 and fake.options_["num_gpus"] == 0
        assert fake.options_["runtime_env"] == {"env_vars": {"OMP_NUM_THREADS": "2"}}
    assert not marker.exists() and [address for address, _ in fake.joined] == ["auto", "shut"]


def test_a_local_cluster_has_a_core_for_each_worker(tmp_path: Path, ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    fake = ray("", "", "")
    with workers.helping(refused, (tmp_path,), 3, "local", None, tmp_path):
        ((_, how),) = fake.joined
    assert how["num_cpus"] == 3 and how["include_dashboard"] is False


def test_a_worker_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, ray: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ray(RayError("its node\nis gone"), "there: disk full", "")
    with workers.helping(refused, (tmp_path,), 3, "auto", None, tmp_path):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"a worker has ended, the others go on: {why}" for why in ("RayError: its node is gone", "there: disk full")
    ]


def test_when_all_workers_fail_that_is_the_mistake(tmp_path: Path, ray: Any) -> None:
    fake = ray("here: disk full")
    with (
        pytest.raises(UserError, match="all workers have ended, the last one for this: here: disk full"),
        workers.helping(refused, (tmp_path,), 1, "auto", None, tmp_path),
    ):
        pass
    assert fake.joined[-1][0] == "shut" and not list(tmp_path.iterdir())


def test_a_time_limit_ends_the_waiting_too(tmp_path: Path, ray: Any) -> None:
    ray("busy")
    with workers.helping(refused, (tmp_path,), 1, "auto", time.monotonic() + 0.05, tmp_path) as stopper:
        assert stopper.reason() == "time limit"


def test_a_worker_stops_when_the_marker_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LOOK", 0.01)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "marker"
    marker.touch()
    threading.Timer(0.1, marker.unlink).start()
    assert workers._work(lambda stopper: until_stopped(Path(), "it", stopper), None, tmp_path, marker) == ""
    assert (tmp_path / "it.end").read_text(encoding="utf-8") == "SIGTERM"


def test_a_worker_s_deadline_is_the_first_process_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "marker").touch()
    call = lambda stopper: until_stopped(tmp_path, "it", stopper)  # noqa: E731
    assert workers._work(call, time.time() + 0.1, Path.cwd(), tmp_path / "marker") == ""
    assert (tmp_path / "it.end").read_text(encoding="utf-8") == "time limit"


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    said = workers._work(lambda _: None, None, Path.cwd(), tmp_path / "elsewhere" / "marker")
    assert said.endswith(f"does not see {tmp_path / 'elsewhere'}: --out has to be a folder that all nodes share")


def test_what_a_worker_failed_for_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "marker").touch()
    said = workers._work(lambda stopper: broken(tmp_path, stopper), None, Path.cwd(), tmp_path / "marker")
    assert said.endswith(": ZeroDivisionError: of all things")


def test_mistakes(tmp_path: Path, ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def join(address: str) -> None:
        with workers.helping(refused, (tmp_path,), 1, address, None, tmp_path):
            pass

    fake = ray("")
    with pytest.raises(UserError, match=r"--ray 127\.0\.0\.1:1: no Ray cluster answers there \(.*refused\)"):
        join("127.0.0.1:1")
    with pytest.raises(UserError, match=r"--ray 127\.0\.0\.1:99999: no Ray cluster answers there \("):
        join("127.0.0.1:99999")
    fake.init = lambda *_, **__: {}["Could not find\nany"]
    with pytest.raises(UserError, match=r"no Ray cluster answers there \(KeyError: .*\)"):
        join("auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--ray needs ray: pip install 'weightclass\[ray\]'"):
        join("local")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "ray"),
    [(["--jobs", "2"], None), (["--ray", "--jobs", "2"], "local"), (["--ray", "head:6379"], "head:6379")],
)
def test_the_option(words: list[str], ray: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def run_studies(names: list[str], *_: str, **how: object) -> tuple[list[object], None]:
        asked.append((names, how["ray"]))
        return [], None

    monkeypatch.setattr("weightclass.study.grid.run_studies", run_studies)
    with pytest.raises(SystemExit):
        cli.main(["study", "table4", *words])
    assert asked == [(["table4"], ray)]


def test_a_study_s_name_is_no_address(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["study", "--ray", "table4"])
    assert "'table4': write HOST:PORT, auto or local (a bare --ray goes last)" in capsys.readouterr().err
