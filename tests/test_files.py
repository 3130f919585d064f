"""Writes that are whole or absent, a lock that dies with its holder, names for any system, JSON lines."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightclass import files
from weightclass.errors import UserError
from weightclass.files import atomic_write, read_jsonl, run_lock, safe_name, write_jsonl

ROOT = Path(__file__).parents[1]


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# --- atomic_write ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "stored"), [(b"\x00\xff", b"\x00\xff"), ("é\n±\r\n", "é\n±\r\n".encode()), ("", b"")])
def test_writes_bytes_and_utf8_text_as_they_are(tmp_path: Path, data: bytes | str, stored: bytes) -> None:
    path = tmp_path / "new" / "folder" / "file"
    atomic_write(path, data)
    assert path.read_bytes() == stored
    atomic_write(str(path), b"again")
    assert path.read_bytes() == b"again"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.ENOSPC, r"disk full: could not write .*file; free some space .*"),
        (errno.EDQUOT, "disk full"),
        (errno.EACCES, "no permission to write .*file"),
        (errno.EROFS, "choose another folder"),
    ],
)
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, cure: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "file"
    atomic_write(path, "old")
    monkeypatch.setattr(*((files.os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(UserError, match=cure):
        atomic_write(path, "new")
    assert (path.read_text(encoding="utf-8"), names(tmp_path)) == ("old", ["file"])


@pytest.mark.parametrize(
    ("error", "seen", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(errno.EIO, "broken disk"), UserError, "could not write .*file: broken disk; choose"),
    ],
)
def test_whatever_happens_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    seen: type[BaseException],
    message: str | None,
) -> None:
    def fail(_: int) -> None:
        raise error

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(seen, match=message):
        atomic_write(tmp_path / "file", "new")
    assert names(tmp_path) == []


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    for place in ("taken/file", "taken/deeper/file"):
        with pytest.raises(UserError, match="a file stands where a folder is needed"):
            atomic_write(tmp_path / place, "new")


def held(times: int, method: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`method` of Path as Windows has it while another process holds the file `name` open: refused, `times` times."""

    def attempt(path: Path, *rest: Any, **named: Any) -> Any:
        nonlocal times
        if name in path.name and times:
            times -= 1
            raise PermissionError(errno.EACCES, "Access is denied")
        return method(path, *rest, **named)

    return attempt


@pytest.mark.parametrize(("tries", "refusals", "written"), [(20, 19, True), (20, 20, False), (1, 1, False)])
def test_a_file_that_windows_holds_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: int, refusals: int, written: bool
) -> None:
    slept = []
    atomic_write(tmp_path / "file", "old")
    monkeypatch.setattr(files, "_TRIES", tries)
    monkeypatch.setattr(files.time, "sleep", slept.append)
    monkeypatch.setattr(Path, "replace", held(refusals, Path.replace, "file"))
    with contextlib.nullcontext() if written else pytest.raises(UserError, match="no permission to write"):
        atomic_write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text(encoding="utf-8") == ("new" if written else "old")
    assert names(tmp_path) == ["file"]
    assert sum(slept) == pytest.approx(0.95 if tries > 1 else 0)


def test_litter_that_is_held_does_not_hide_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    monkeypatch.setattr(Path, "unlink", held(1, Path.unlink, ".tmp"))
    with pytest.raises(UserError, match="disk full"):
        atomic_write(tmp_path / "file", "new")


# --- run_lock ----------------------------------------------------------------------------------------------

HOLD = """
import sys
from weightclass.files import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds `folder` until its standard input closes."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, encoding="utf-8")
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_one_process_a_folder(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    with holder(run) as process:
        with pytest.raises(UserError, match=rf"another process \(pid {process.pid}\) is using .*one: .* --out"):
            run_lock(run).__enter__()
        process.communicate("")
    with run_lock(run):
        assert (run / ".lock.pid").read_text(encoding="utf-8") == f"{os.getpid()}\n"
    assert not (run / ".lock.pid").exists()


def test_a_killed_holder_frees_the_lock_and_its_litter_goes(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        (tmp_path / ".result.json.123.tmp").write_bytes(b"half a res")
        (tmp_path / "checkpoint").mkdir()
        (tmp_path / "checkpoint" / ".1.safetensors.123.tmp").write_bytes(b"half a check")
        process.kill()
    assert (tmp_path / ".lock.pid").read_text(encoding="utf-8") == f"{process.pid}\n"
    with run_lock(tmp_path):
        assert (tmp_path / ".lock.pid").read_text(encoding="utf-8") == f"{os.getpid()}\n"
        assert list(tmp_path.rglob("*.tmp")) == []


def test_the_same_process_cannot_hold_a_folder_twice_but_can_again(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(UserError, match=f"pid {os.getpid()}"):
        run_lock(tmp_path).__enter__()
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        _ = 1 / 0
    with run_lock(tmp_path):
        pass


def test_the_holder_may_not_have_written_its_pid_yet(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        (tmp_path / ".lock.pid").unlink()
        with pytest.raises(UserError, match="pid unknown"):
            run_lock(tmp_path).__enter__()


def test_what_windows_holds_open_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    litter = [tmp_path / f".{number}.123.tmp" for number in (1, 2, 3)]
    for path in litter:
        path.touch()
    monkeypatch.setattr(Path, "unlink", held(2, Path.unlink, ".123.tmp"))
    with run_lock(tmp_path):
        assert sum(path.exists() for path in litter) == 2
        monkeypatch.setattr(Path, "unlink", held(9, Path.unlink, ".lock.pid"))
        monkeypatch.setattr(Path, "read_text", held(9, Path.read_text, ".lock.pid"))
        with pytest.raises(UserError, match="pid unknown"):
            run_lock(tmp_path).__enter__()
    with run_lock(tmp_path):  # freed, though `.lock.pid` stayed
        pass


def test_litter_that_vanishes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(folder: Path, _: str) -> Iterator[Path]:
        yield folder / ".gone.123.tmp"
        raise FileNotFoundError(errno.ENOENT, "a folder that went")

    monkeypatch.setattr(Path, "rglob", found)
    with run_lock(tmp_path):
        assert (tmp_path / ".lock.pid").exists()


def test_a_lock_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        run_lock(tmp_path / "file").__enter__()


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("small-cpu", "small-cpu"),
        ("My recipe (2).v1_b", "My-recipe--2-.v1_b"),
        ("übung: 5/7\n", "-bung--5-7-"),
        ("../..", "-"),
        (" ..hidden. ", "hidden"),
        ("", "_"),
        (". .", "_"),
        ("con", "_con"),
        ("NUL.tar.gz", "_NUL.tar.gz"),
        ("Com1. ", "_Com1"),
        ("lpt9", "_lpt9"),
        ("console", "console"),
        ("com10", "com10"),
        ("x" * 79 + "..y", "x" * 79),
        ("aux." + "x" * 90, "_aux." + "x" * 75),
    ],
)
def test_a_folder_name_for_any_system(text: str, name: str) -> None:
    assert safe_name(text) == name


@given(st.text(max_size=100) | st.text("conul1.- \n", max_size=100))
def test_a_safe_name_is_safe_and_stays(text: str) -> None:
    name = safe_name(text)
    assert safe_name(name) == name
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,80}", name)
    assert not name.startswith(".")
    assert not name.endswith(".")
    assert name.partition(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt9"}


# --- JSON lines --------------------------------------------------------------------------------------------

RECORDS = st.lists(st.dictionaries(st.text(), st.integers(-(2**53), 2**53) | st.text() | st.booleans()), max_size=4)


@given(RECORDS)
def test_what_is_written_is_read(records: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metrics.jsonl")
        write_jsonl(path, records)
        assert read_jsonl(path) == records


def test_lines_are_plain_json(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "m", [{"step": 1, "loss": float("nan")}, {"name": "é"}])
    assert (tmp_path / "m").read_bytes() == '{"step":1,"loss":null}\n{"name":"é"}\n'.encode()


def test_no_file_no_records(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "none") == []


@pytest.mark.parametrize("line", [b"not json", b"\xff", b"", b'{"a'])
def test_a_broken_line_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "m").write_bytes(b'{"a":0}\n' + line + b'\n{"a":1}\n')
    with pytest.raises(UserError, match="m, line 2: not JSON"):
        read_jsonl(tmp_path / "m")


# --- places that are no plain files ------------------------------------------------------------------------


def test_a_link_is_followed_and_a_mode_kept(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old", encoding="utf-8")
    (tmp_path / "real.csv").chmod(0o600)
    (tmp_path / "link.csv").symlink_to("real.csv")
    files.atomic_write(tmp_path / "link.csv", "new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text(encoding="utf-8") == "new"
    assert (tmp_path / "real.csv").stat().st_mode & 0o777 == 0o600


def test_a_device_stays_a_device() -> None:
    files.atomic_write("/dev/null", "gone")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(UserError, match="disk full: could not write /dev/full"):
        files.atomic_write("/dev/full", "too much")


@pytest.mark.parametrize("write", [lambda path: files.atomic_write(path, ""), files.check_writable])
def test_a_folder_is_no_file(tmp_path: Path, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, Path()):
        with pytest.raises(UserError, match="it is a folder; name a file"):
            write(folder)


def test_a_place_is_tried_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        files.check_writable(tmp_path / "file" / "a.csv")
    files.check_writable(tmp_path / "new" / "deep" / "a.csv")
    files.check_writable("/dev/null")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
