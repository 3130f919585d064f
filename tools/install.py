"""Installs weightclass into .venv beside this file, from the wheels beside it: nothing is fetched.

`make bundle` packs it, install.sh and install.bat start it. It imports nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path


def damaged(folder: Path) -> list[str]:
    """The files listed in SHA256SUMS that are missing or not what was packed."""
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    return [name for digest, name in (line.split("  ", 1) for line in lines) if sha256(folder / name) != digest]


def sha256(path: Path) -> str:
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(folder: Path, about: dict[str, str]) -> None:
    """Leave with one line where this Python cannot take the wheels or a file was damaged on the way."""
    mine = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if mine != about["python"]:
        sys.exit(f"install: this bundle is for Python {about['python']}, not {mine}: set PYTHON to one and start anew")
    if wrong := damaged(folder):
        sys.exit(f"install: missing or damaged: {', '.join(wrong)}: copy and unpack the bundle again")


def install(folder: Path, about: dict[str, str]) -> None:
    """A new .venv with the wheels in it, whatever pip's settings and PYTHONPATH say."""
    python = folder / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    for command in (
        [sys.executable, "-m", "venv", "--clear", folder / ".venv"],
        [*pip, "--find-links", folder / "wheels", about["install"]],
    ):
        if subprocess.run(command, env=plain | {"PIP_CONFIG_FILE": os.devnull}, check=False).returncode:
            sys.exit(f"install: failed, see above; the wheels are for Python {about['python']}, {about['platform']}")


def next_steps(folder: Path, data: str, windows: bool) -> list[str]:
    """What to type now: `data` is where CIFAR-10 lies in `folder`, "" without it."""
    program = str(folder / ".venv" / ("Scripts/weightclass.exe" if windows else "bin/weightclass"))
    quoted = f'"{program}"' if windows else shlex.quote(program)
    steps = [f"{quoted} train quickstart"]
    if data:
        line = 'set "WEIGHTCLASS_DATA={}"' if windows else "export WEIGHTCLASS_DATA={}"
        where = str(folder / data)
        steps += [line.format(where if windows else shlex.quote(where)), f"{quoted} train small-cpu"]
    return steps


def main() -> None:
    folder = Path(__file__).resolve().parent
    try:
        about = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        check(folder, about)
    except (OSError, ValueError) as error:  # a file that says what to check is itself missing or damaged
        sys.exit(f"install: {error}: copy and unpack the bundle again")
    print("Installing into .venv (a minute, most of it torch)", flush=True)
    install(folder, about)
    print("Installed. Next:", *next_steps(folder, about["data"], os.name == "nt"), sep="\n  ")


if __name__ == "__main__":
    main()
