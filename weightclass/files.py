"""Files that survive a kill, a full disk, a second process and Windows: atomic writes, locks, names, JSON lines."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from weightclass.errors import UserError

_CURES = {
    errno.ENOSPC: "disk full: could not write {}; free some space and run the same command again",
    errno.EACCES: "no permission to write {}: choose another folder, or make this one writable",
    errno.ENOTDIR: "could not write {}: a file stands where a folder is needed; move it or choose another folder",
}
_CURES |= dict.fromkeys((errno.EDQUOT, errno.EFBIG), _CURES[errno.ENOSPC]) | {errno.EEXIST: _CURES[errno.ENOTDIR]}
_CURES |= dict.fromkeys((errno.EPERM, errno.EROFS), _CURES[errno.EACCES])

_TRIES = 20 if os.name == "nt" else 1
"""Windows refuses to replace a file that a reader or a virus scanner holds open; 0.05 s apart, it gets a second."""


class Unwritable(UserError):
    """The disk is full, or the place not to be written to."""


@contextlib.contextmanager
def cured(path: Path) -> Iterator[None]:
    """Turn the OSErrors that a user can mend into `Unwritable`."""
    try:
        yield
    except OSError as error:
        other = f"could not write {{}}: {error.strerror or error}; choose another folder"
        raise Unwritable(_CURES.get(error.errno or 0, other).format(path)) from error


def atomic_write(path: Path | str, data: bytes | str) -> None:
    """Write `data` (text as UTF-8, newlines kept) so that `path` holds all of it or what it held before.

    Makes the folder where it is missing, keeps a file's mode, follows a link, and just writes to what is no file (a
    device, a pipe). Raises UserError where the disk is full or the place not writable.
    """
    path = _target(path)
    payload = data.encode() if isinstance(data, str) else data
    if path.exists() and not path.is_file():
        with cured(path):
            path.write_bytes(payload)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder: a rename across disks is a copy
    with cured(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, temporary)
            replace(temporary, path)
        finally:  # after a Ctrl-C too
            _discard(temporary)
        _sync_folder(path.parent)


def _target(path: Path | str) -> Path:
    path = Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)
    if path.is_dir():
        raise UserError(f"could not write {path}: it is a folder; name a file")
    return path


def check_writable(path: Path | str) -> None:
    """Raise now the UserError that `atomic_write` would raise after the work."""
    path = _target(path)
    if not path.exists() or path.is_file():
        with (
            cured(path),
            tempfile.TemporaryFile(dir=next(above for above in path.absolute().parents if above.exists())),
        ):
            pass


def replace(temporary: Path, path: Path) -> None:
    """Rename, patiently on Windows, where a scanner or another reader may hold either for a moment."""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(PermissionError):
            temporary.replace(path)
            return
        time.sleep(0.05)
    temporary.replace(path)


def _discard(path: Path) -> None:
    """Remove a file that nobody needs; one that is gone, or held open on Windows, is no reason to fail."""
    with contextlib.suppress(OSError):
        path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets a folder be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# --- one process a folder ----------------------------------------------------------------------------------


class Busy(UserError):
    """Another process holds the folder."""


@contextlib.contextmanager
def run_lock(folder: Path | str) -> Iterator[None]:
    """Hold `folder` (made where missing) for this process; Busy (a UserError) where another one holds it.

    The system frees the lock when its holder dies, however it dies. `.lock.pid` tells who holds it. What a killed
    holder's `atomic_write` left half written in the folder is removed.
    """
    import filelock

    folder = Path(folder)
    with cured(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", blocking=False)
        try:
            lock.acquire()
        except filelock.Timeout:
            holder = "unknown"  # it has only just taken the lock, or Windows lets nobody else read now
            with contextlib.suppress(OSError):
                holder = (folder / ".lock.pid").read_text(encoding="utf-8").strip()
            cure = "wait for it or choose another folder with --out"
            raise Busy(f"another process (pid {holder}) is using {folder}: {cure}") from None
    try:
        with contextlib.suppress(OSError):  # a folder below that goes meanwhile
            for leftover in folder.rglob(".*.tmp"):
                _discard(leftover)
        atomic_write(folder / ".lock.pid", f"{os.getpid()}\n")
        yield
    finally:
        _discard(folder / ".lock.pid")
        lock.release()


def held(folder: Path) -> bool:
    """Whether a process, this or another, holds `run_lock` on the folder now."""
    import filelock

    try:
        with filelock.FileLock(folder / ".lock", blocking=False):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # no such folder: nobody
        return False


# --- names -------------------------------------------------------------------------------------------------

_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\.|\Z)", re.IGNORECASE)


def safe_name(text: str) -> str:
    """`text` as a name that any system takes for a folder: 1 to 80 of ASCII letters, digits, ".", "_" and "-".

    Other characters become "-"; Windows' device names, such as NUL, with or without a suffix, get a "_" in front.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "-", text.strip(". ")) or "_"
    return ("_" * bool(_RESERVED.match(name)) + name)[:80].rstrip(".")


# --- JSON lines --------------------------------------------------------------------------------------------


def write_jsonl(path: Path | str, records: list[dict[str, Any]]) -> None:
    """One line a record, the file replaced whole. NaN and infinities are written as null, so that it stays JSON."""
    atomic_write(path, b"".join(msgspec.json.encode(record) + b"\n" for record in records))


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, none where it is missing. Raises UserError where a line is not JSON."""
    path = Path(path)
    records = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        try:
            records.append(msgspec.json.decode(line, type=dict[str, Any]))
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise UserError(f"{path}, line {number}: not JSON; remove the line, or the file to start anew") from None
    return records


def csv_text(heads: Iterable[str], records: Iterable[Iterable[Any]]) -> str:
    """A header and the records: plain numbers, None as nothing, several values in a cell joined by semicolons."""
    rows = csv.writer(text := io.StringIO(), lineterminator="\n")
    rows.writerow(heads)
    for record in records:
        rows.writerow("; ".join(map(str, cell)) if isinstance(cell, tuple) else cell for cell in record)
    return text.getvalue()
