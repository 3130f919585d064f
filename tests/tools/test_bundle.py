"""A bundle holds what it should and nothing of its maker; what was damaged on the way is refused before any install."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.reference.cifar import make_up, write_binary, write_python
from tools import bundle, install
from weightclass import UserError, __version__

PARTS = make_up(10)
MODULE = "def main():\n    print('hello from the wheel')\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and WEIGHTCLASS_DATA unset."""
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WEIGHTCLASS_DATA", raising=False)
    return tmp_path / "cache"


def fake_wheels(folder: Path, *_: str) -> None:
    """In place of pip: a whole, tiny wheel by the project's name."""
    folder.mkdir()
    info = f"weightclass-{__version__}.dist-info"
    texts = {
        "weightclass.py": MODULE,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: weightclass\nVersion: {__version__}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nweightclass = weightclass:main\n",
    }
    texts[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*texts, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"weightclass-{__version__}-py3-none-any.whl", "w") as wheel:
        for name, text in texts.items():
            wheel.writestr(name, text)


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with made-up data, carried to another place."""
    monkeypatch.setattr(bundle, "collect_wheels", fake_wheels)
    monkeypatch.setenv("WEIGHTCLASS_DATA", str(write_binary(tmp_path / "home" / "cifar-10-batches-bin", PARTS)))
    bundle.bundle(tmp_path / "dist", "", "", True)
    with tarfile.open(tmp_path / "dist" / f"{bundle.NAME}.tar") as tar:
        tar.extractall(tmp_path / "a b")
    return tmp_path / "a b" / bundle.NAME


# --- packing -----------------------------------------------------------------------------------------------


def test_the_bundle_is_whole_and_nobodys(unpacked: Path, tmp_path: Path) -> None:
    found = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    sums = (unpacked / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    assert {line.split("  ")[1] for line in sums} == found - {"SHA256SUMS"}
    assert {"README.txt", "install.sh", "install.bat", "install.py", "data/cifar-10-batches-bin/test_batch.bin"} < found
    assert len((unpacked / "README.txt").read_text(encoding="utf-8").splitlines()) <= 12
    assert (unpacked / "install.bat").read_bytes().count(b"\r\n") == bundle.INSTALL_BAT.count("\n")
    packed = tmp_path / "dist" / f"{bundle.NAME}.tar"
    assert list(packed.parent.iterdir()) == [packed]
    with tarfile.open(packed) as tar:
        for member in tar:
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            assert member.mode == (0o755 if member.name.endswith(".sh") else 0o644)
    content = packed.read_bytes()
    for secret in (str(tmp_path), str(bundle.ROOT), getpass.getuser() + "\0"):
        assert secret.encode() not in content


def test_one_line_tells_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(bundle, "collect_wheels", fake_wheels)
    line = bundle.bundle(tmp_path / "dist", "dev", "", True)
    assert re.fullmatch(rf".*{re.escape(bundle.NAME)}\.tar: 0 MB, 1 wheels", line)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("Without CIFAR-10: it is neither where WEIGHTCLASS_DATA says nor in ")
    assert len(told) == 2
    bundle.bundle(tmp_path / "dist", "dev", "", False)
    assert "CIFAR-10" not in capsys.readouterr().out
    with tarfile.open(tmp_path / "dist" / f"{bundle.NAME}.tar") as tar:
        about = json.load(tar.extractfile(f"{bundle.NAME}/bundle.json"))  # type: ignore[arg-type]
    assert (about["install"], about["data"]) == ("weightclass[dev]", "")


def test_a_failed_packing_keeps_the_old_bundle(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"old")
    (tmp_path / "one").write_bytes(b"1")
    with pytest.raises(FileNotFoundError):
        bundle.pack({"one": tmp_path / "one", "two": tmp_path / "gone"}, tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "x.tar"]


@pytest.mark.parametrize("index", ["", "https://example.org/cpu"])
def test_what_pip_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    asked = []

    def run(command: list[str], check: bool) -> subprocess.CompletedProcess:
        source = Path(command[-1].removesuffix("[dev]"))
        inside = {path.relative_to(source).parts[0] for path in source.rglob("*")} if source.is_dir() else None
        asked.append((" ".join(command), inside))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bundle.subprocess, "run", run)
    bundle.collect_wheels(tmp_path, "dev", index)
    *first, (last, inside) = asked
    assert [command.partition(" --no-deps")[2] for command, _ in first] == [f" --index-url {index} torch"] * bool(index)
    assert all("--constraint" in command and "constraints.txt" in command for command, _ in asked)
    assert f"--find-links {tmp_path}" in last
    assert last.endswith("[dev]")
    assert inside == {"pyproject.toml", "README.md", "LICENSE", "weightclass"}


def test_a_failing_pip_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle.subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 1))
    with pytest.raises(UserError, match="could not collect"):
        bundle.collect_wheels(tmp_path, "", "")


# --- data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "name"), [(write_binary, "cifar-10-batches-bin"), (write_python, "cifar-10-batches-py")]
)
@pytest.mark.parametrize("where", ["folder", "parent", "cache", "renamed"])
def test_data_is_found(monkeypatch: pytest.MonkeyPatch, cache: Path, where: str, write, name: str) -> None:
    folder = write(cache / ("mine" if where == "renamed" else name), PARTS)
    if where != "cache":
        monkeypatch.setenv("WEIGHTCLASS_DATA", str(cache if where == "parent" else folder))
    (folder / "mine.txt").touch()
    files = bundle.find_data()
    assert set(files.values()) == set(folder.iterdir()) - {folder / "mine.txt"}
    assert {place.rpartition("/")[0] for place in files} == {f"data/{name}"}


@pytest.mark.parametrize("given", [True, False])
def test_the_archive_is_found_and_proven(monkeypatch: pytest.MonkeyPatch, cache: Path, given: bool) -> None:
    archive = cache / "cifar-10-binary.tar.gz"
    cache.mkdir()
    archive.write_bytes(b"official")
    if given:
        archive = archive.rename(cache / "mine.tar.gz")
        monkeypatch.setenv("WEIGHTCLASS_DATA", str(archive))
    with pytest.raises(UserError, match="sha256"):
        bundle.find_data()
    monkeypatch.setattr(bundle, "load", lambda config: config.path == str(archive) or pytest.fail(config.path))
    assert bundle.find_data() == {"data/cifar-10-binary.tar.gz": archive}


def test_damaged_data_does_not_travel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_binary(tmp_path / "cifar", PARTS)
    monkeypatch.setenv("WEIGHTCLASS_DATA", str(folder))
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match=r"data_batch_3\.bin"):
        bundle.find_data()


# --- installing --------------------------------------------------------------------------------------------


def installing(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHON": sys.executable, "PIP_INDEX_URL": "http://127.0.0.1:9", **environment}
    command = ["cmd", "/c", "install.bat"] if os.name == "nt" else ["sh", str(folder / "install.sh")]
    pipe, env = subprocess.PIPE, os.environ | environment
    return subprocess.run(
        command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True, encoding="utf-8", check=False
    )


def test_the_checksums_see_a_changed_and_a_missing_file(unpacked: Path) -> None:
    assert install.damaged(unpacked) == []
    batch = unpacked / "data" / "cifar-10-batches-bin" / "data_batch_2.bin"
    batch.write_bytes(batch.read_bytes()[:-1] + b"?")
    (wheel,) = (unpacked / "wheels").iterdir()
    wheel.unlink()
    names = {"data/cifar-10-batches-bin/data_batch_2.bin", f"wheels/{wheel.name}"}
    assert set(install.damaged(unpacked)) == names
    outcome = installing(unpacked)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert re.fullmatch("install: missing or damaged: .*data_batch_2.*: copy and unpack .*\n", outcome.stderr)
    assert not (unpacked / ".venv").exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("bundle.json", b'{"python": "3.9"}', r"this bundle is for Python 3\.9, not 3\.\d+: set PYTHON"),
        ("bundle.json", b"{", "copy and unpack"),
        ("SHA256SUMS", b"\xff", "copy and unpack"),
        ("SHA256SUMS", None, "copy and unpack"),
    ],
)
def test_what_cannot_be_installed_says_so(unpacked: Path, name: str, content: bytes | None, told: str) -> None:
    (unpacked / name).unlink()
    if content is not None:
        (unpacked / name).write_bytes(content)
    outcome = installing(unpacked)
    assert outcome.returncode == 1
    assert re.fullmatch(f"install: .*{told}.*\n", outcome.stderr)


@pytest.mark.skipif(os.name == "nt", reason="sh")
def test_the_right_python_is_looked_for(unpacked: Path, tmp_path: Path) -> None:
    only = tmp_path / "bin"
    only.mkdir()
    (only / "dirname").symlink_to(str(shutil.which("dirname")))
    (only / "sh").symlink_to("/bin/sh")
    for name, version in ((f"python{bundle.PYTHON}", "exit 1"), ("python3", "echo python3 $2; exit 0")):
        (only / name).write_text(f"#!/bin/sh\n{version}\n", encoding="utf-8")
        (only / name).chmod(0o755)
    outcome = installing(unpacked, PATH=str(only), PYTHON="")
    assert (outcome.returncode, outcome.stdout.splitlines()[-1:]) == (0, ["python3"])
    (only / "python3").unlink()
    outcome = installing(unpacked, PATH=str(only), PYTHON="")
    assert (outcome.returncode, outcome.stderr[:34]) == (1, f"install: no Python {bundle.PYTHON} found: set")


@pytest.mark.parametrize(
    ("data", "windows", "steps"),
    [
        ("", False, ["'/a b/.venv/bin/weightclass' train quickstart"]),
        (
            "data/x",
            False,
            [
                "'/a b/.venv/bin/weightclass' train quickstart",
                "export WEIGHTCLASS_DATA='/a b/data/x'",
                "'/a b/.venv/bin/weightclass' train small-cpu",
            ],
        ),
        (
            "data/x",
            True,
            [
                '"/a b/.venv/Scripts/weightclass.exe" train quickstart',
                'set "WEIGHTCLASS_DATA=/a b/data/x"',
                '"/a b/.venv/Scripts/weightclass.exe" train small-cpu',
            ],
        ),
    ],
)
def test_the_next_steps(data: str, windows: bool, steps: list[str]) -> None:
    found = install.next_steps(Path("/a b"), data, windows)
    assert [line.replace("\\", "/") for line in found] == steps


@pytest.mark.slow
def test_it_installs_without_a_network(unpacked: Path) -> None:
    outcome = installing(unpacked, PIP_FIND_LINKS="http://127.0.0.1:9", PYTHONPATH=str(bundle.ROOT))
    assert outcome.returncode == 0, outcome.stderr
    assert str(unpacked / "data" / "cifar-10-batches-bin") in outcome.stdout
    program = unpacked / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "weightclass"
    ran = subprocess.run([program], stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    assert ran.stdout == "hello from the wheel\n"
