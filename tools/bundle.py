"""`make bundle`: one tar with all that a machine without internet needs to install weightclass and to train.

Inside are wheels of the project and of what it needs, pinned as in constraints.txt, CIFAR-10 where it is found, their
checksums, and installers. Nothing in it tells where it was made. Not compressed: wheels are, pixels hardly can be.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

from tools.install import sha256
from weightclass import __version__
from weightclass.data.download import cache_folder
from weightclass.data.sources import Data, load
from weightclass.errors import UserError

ROOT = Path(__file__).parents[1]
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
PLATFORM = sysconfig.get_platform().replace("-", "_")
NAME = f"weightclass-{__version__}-{PLATFORM}-cp{PYTHON.replace('.', '')}"

INSTALL_SH = f"""\
#!/bin/sh
# Installs weightclass into .venv beside this file, without a network. PYTHON=/path/to/python chooses the Python.
here=$(dirname "$0")
if [ -n "${{PYTHON:-}}" ]; then exec "$PYTHON" "$here/install.py"; fi
for python in python{PYTHON} python3 python; do
    if "$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "{PYTHON}")' 2>/dev/null; then
        exec "$python" "$here/install.py"
    fi
done
echo "install: no Python {PYTHON} found: set PYTHON to one and start anew" >&2
exit 1
"""

INSTALL_BAT = f"""\
@echo off
rem Installs weightclass into .venv beside this file, without a network. "set PYTHON=..." chooses the Python.
set "RUN=python"
py -{PYTHON} -c "" >nul 2>nul && set "RUN=py -{PYTHON}"
if defined PYTHON set RUN="%PYTHON%"
%RUN% "%~dp0install.py"
""".replace("\n", "\r\n")

README = f"""\
weightclass {__version__} for Python {PYTHON} on {PLATFORM}, with all that it needs: no internet is used.

  Linux, macOS   sh install.sh
  Windows        install.bat

The installer checks every file against SHA256SUMS, makes .venv in this folder (anew, each time) from wheels/,
and prints what to type next. It needs Python {PYTHON}; PYTHON=/path/to/python sh install.sh names one.
{{data}}
wheels/ holds others' work under their own licenses, which lie in each wheel's .dist-info folder.
Remove this folder, and nothing is left.
"""


def collect_wheels(folder: Path, extras: str, torch_index: str) -> None:
    """Wheels of this checkout and all it needs; torch first, and alone, where it has an index of its own."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--wheel-dir", str(folder)]
    pip += ["--constraint", str(ROOT / "constraints.txt")]
    with tempfile.TemporaryDirectory() as copy:  # setuptools packs what older builds left in the checkout's build/
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        shutil.copytree(ROOT / "weightclass", Path(copy, "weightclass"), ignore=shutil.ignore_patterns("__pycache__"))
        commands = [[*pip, "--no-deps", "--index-url", torch_index, "torch"]] if torch_index else []
        commands += [[*pip, "--find-links", str(folder), f"{copy}[{extras}]" if extras else copy]]
        for command in commands:
            if subprocess.run(command, check=False).returncode:
                raise UserError("pip could not collect the wheels, see above: mend that and run the command again")


BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
FOLDERS = {
    "cifar-10-batches-bin": (*(f"{name}.bin" for name in BATCHES), "batches.meta.txt"),
    "cifar-10-batches-py": (*BATCHES, "batches.meta"),
}
ARCHIVE = "cifar-10-binary.tar.gz"


def find_data() -> dict[str, Path]:
    """CIFAR-10's official files by their places in the bundle; none where nobody has them. UserError if damaged."""
    given = os.environ.get("WEIGHTCLASS_DATA", "")
    for where in (*([Path(given).expanduser()] if given else []), cache_folder()):
        for name, files in FOLDERS.items():
            for folder in (where / name, where):
                if (folder / files[0]).is_file():
                    load(Data(name="cifar10", path=str(folder)))
                    return {f"data/{name}/{file}": folder / file for file in files if (folder / file).is_file()}
        for archive in (where, where / ARCHIVE):
            if archive.is_file():
                load(Data(name="cifar10", path=str(archive)))
                return {f"data/{ARCHIVE}": archive}
    return {}


def write_texts(stage: Path, extras: str, data: str) -> None:
    """What is neither a wheel nor data: installers, what they need to know (bundle.json), README."""
    about = {"install": f"weightclass[{extras}]" if extras else "weightclass", "data": data}
    about |= {"python": PYTHON, "platform": PLATFORM}
    told = f"CIFAR-10 lies in {data}." if data else "CIFAR-10 is not in it; the recipe quickstart needs no data."
    texts = {"README.txt": README.format(data=told), "bundle.json": json.dumps(about, indent=2) + "\n"}
    for name, text in (texts | {"install.sh": INSTALL_SH, "install.bat": INSTALL_BAT}).items():
        (stage / name).write_text(text, encoding="utf-8", newline="")
    shutil.copy(Path(__file__).with_name("install.py"), stage)


def pack(files: dict[str, Path], target: Path) -> None:
    """Write `target`, whole or not at all; its files belong to nobody, whoever packs them."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with tarfile.open(temporary, "w") as tar:
            for name, path in files.items():
                member = tarfile.TarInfo(f"{target.stem}/{name}")
                member.size, member.mtime = path.stat().st_size, int(time.time())
                member.mode = 0o755 if path.suffix == ".sh" else 0o644
                with path.open("rb") as file:
                    tar.addfile(member, file)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def bundle(out: Path, extras: str, torch_index: str, with_data: bool) -> str:
    """Make the bundle in the folder `out`; returns the line that tells of it. Raises UserError."""
    out.mkdir(parents=True, exist_ok=True)
    data = find_data() if with_data else {}
    if with_data and not data:
        print(f"Without CIFAR-10: it is neither where WEIGHTCLASS_DATA says nor in {cache_folder()}")
    print("Collecting wheels (minutes, most of it torch)", flush=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".bundle-") as folder:
        stage = Path(folder)
        collect_wheels(stage / "wheels", extras, torch_index)
        place = next(iter(data), "")
        write_texts(stage, extras, place if place.endswith(".gz") else place.rpartition("/")[0])
        files = {path.relative_to(stage).as_posix(): path for path in sorted(stage.rglob("*")) if path.is_file()} | data
        sums = "".join(f"{sha256(path)}  {name}\n" for name, path in files.items())
        (stage / "SHA256SUMS").write_text(sums, encoding="utf-8", newline="")
        target = out / f"{NAME}.tar"
        pack({"SHA256SUMS": stage / "SHA256SUMS"} | files, target)
    wheels = sum(name.endswith(".whl") for name in files)
    return f"{target}: {target.stat().st_size / 1e6:,.0f} MB, {wheels} wheels{', CIFAR-10' * bool(data)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="", help="such as dev")
    parser.add_argument("--torch-index", default="", help="where torch comes from, if not where the rest does")
    parser.add_argument("--no-data", action="store_true", help="leave CIFAR-10 out")
    args = parser.parse_args()
    try:
        print(bundle(Path("dist"), args.extras, args.torch_index, not args.no_data))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
