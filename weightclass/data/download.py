"""An archive fetched once, proven by its hash and unpacked in the cache; nothing half done has a final name."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightclass.errors import UserError
from weightclass.files import replace

if TYPE_CHECKING:
    from rich.progress import Progress


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
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TimeRemainingColumn())
    with _alone(path), Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar: Any = _Bar(progress, path.name)  # pooch's own annotation knows only tqdm
        downloader: Any = pooch.HTTPDownloader(bar, chunk_size=2**20, timeout=30)
        try:
            pooch.retrieve(url, f"sha256:{sha256}", path.name, path.parent, downloader=downloader)
        except (OSError, ValueError) as error:  # no network or no room; a hash that does not agree
            reason = textwrap.shorten(str(error), 160, placeholder=" ...")
            raise UserError(f"cannot download {url} ({type(error).__name__}: {reason}): {cure}") from None


class _Bar:
    """rich's bar under the names that pooch calls."""

    def __init__(self, progress: Progress, title: str):
        self.progress, self.task, self.total = progress, progress.add_task(title), None

    def update(self, count: int) -> None:
        self.progress.update(self.task, total=self.total, advance=count)

    def reset(self) -> None:
        self.progress.reset(self.task)

    def close(self) -> None:
        self.progress.stop()


def unpack(archive: Path, folder: Path, names: Iterable[str]) -> None:
    """Unpack the plain files `folder.name/name` of a tar.gz, all of them and nothing else, unless `folder` is there.

    Raises UserError where the archive is cut off, damaged, none at all, or lacks one of them.
    """
    wanted = {f"{folder.name}/{name}" for name in names}
    with _alone(folder):
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
            inside = tar.extractfile(member) if member.isfile() and member.name in wanted else None
            if inside:
                with Path(work, member.name).open("wb") as outside:
                    shutil.copyfileobj(inside, outside)
    if missing := sorted(name for name in wanted if not Path(work, name).is_file()):
        raise ValueError(f"it lacks {missing[0]}")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time makes `path`: the workers of a grid start together."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        yield
