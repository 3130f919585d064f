"""An archive fetched once, proven by its hash and unpacked in the cache; nothing half done has a final name."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from weightclass.errors import UserError
from weightclass.files import replace
from weightclass.runlog import Progress, working


def expand(place: str) -> Path:
    """`place` with a leading ~ replaced by the home folder; an unknown ~user stays, and so is a place not there."""
    return Path(os.path.expanduser(place))  # noqa: PTH111 (Path's own raises RuntimeError for an unknown user)


def cache_folder() -> Path:
    """`WEIGHTCLASS_CACHE`, else the platform's place for caches, such as ~/.cache/weightclass."""
    if chosen := os.environ.get("WEIGHTCLASS_CACHE"):
        return expand(chosen)
    import pooch

    return Path(pooch.os_cache("weightclass"))


def check_sha256(path: Path, expected: str, cure: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(f"{path}: its sha256 is {found}, expected {expected}: {cure}")


def fetch(url: str, sha256: str, path: Path, cure: str) -> None:
    """Download `url` to `path`, unless a file with that hash is there; many processes may ask at once.

    Pooch writes to another name beside it and renames once the hash agrees.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")  # what it is about to do, the bar says
    with alone(path), working(f"{path.name}, MB") as progress:
        downloader: Any = pooch.HTTPDownloader(_Bar(progress), chunk_size=2**20, timeout=30)  # type: ignore[arg-type]
        try:
            pooch.retrieve(url, f"sha256:{sha256}", path.name, path.parent, downloader=downloader)
        except (OSError, ValueError) as error:  # no network or no room; a hash that does not agree
            reason = textwrap.shorten(str(error), 160, placeholder=" ...")
            raise UserError(f"cannot download {url} ({type(error).__name__}: {reason}): {cure}") from None


class _Bar:
    """`working`'s bar under the names that pooch calls, in MB."""

    total = done = 0

    def __init__(self, progress: Progress):
        self.progress = progress

    def update(self, count: int) -> None:
        self.done += count
        self.progress(self.done // 10**6, self.total // 10**6)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None: ...


def unpack(archive: Path, folder: Path, names: Iterable[str]) -> None:
    """Unpack the plain files `folder.name/name` of a tar.gz, all of them and nothing else, unless `folder` is there.

    Raises UserError where the archive is cut off, damaged, none at all, or lacks one of them.
    """
    wanted = {f"{folder.name}/{name}" for name in names}
    with alone(folder):
        if folder.is_dir():
            return
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unpacking-") as work:
            Path(work, folder.name).mkdir()
            try:
                _extract(archive, wanted, Path(work))
            except Exception as error:  # damaged bytes can fail anywhere in gzip, zlib and tarfile
                if isinstance(error, OSError) and error.errno:  # the disk's fault, not the archive's
                    raise
                reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...")
                raise UserError(f"{archive}: not a whole archive of {folder.name} ({reason}): fetch it anew") from None
            replace(Path(work, folder.name), folder)


def _extract(archive: Path, wanted: set[str], work: Path) -> None:
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.name in wanted and member.isfile() and (inside := tar.extractfile(member)):
                with Path(work, member.name).open("wb") as outside:
                    shutil.copyfileobj(inside, outside)
    if missing := sorted(name for name in wanted if not Path(work, name).is_file()):
        raise ValueError(f"it lacks {missing[0]}")


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time makes `path`: the workers of a grid start together."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"waiting for another process that makes {path}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
