"""Learning from trained networks as well as from labels (Hinton et al. 2015). Teachers go by the hash of their files; a
folder of their logits tells it too, so that a run is the same one with those files and without."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, structs

from weightclass import champions
from weightclass.config import Table
from weightclass.errors import UserError

HEADER = "logits.json"
HASH = "sha256:"


class Distill(Table):
    """Recipe table [distill]. Without teachers it is nothing, and no part of a run's fingerprint."""

    teachers: tuple[str, ...] = ()
    """Model files, run folders or champions ("700k"), whose mean logits teach: the geometric mean of their answers (one
    of two that Hinton et al. offer), which leaves temperature and weight to be chosen afterwards."""
    temperature: Annotated[float, Meta(gt=0, le=1000)] = 4.0
    """Divides both sides' logits, so that unlikely classes count; 4 and 0.9 are usual on CIFAR (Tian et al. 2020)."""
    weight: Annotated[float, Meta(ge=0, le=1)] = 0.9
    """Share of the teachers in the loss; the rest is the labels'."""
    cache: str = ""
    """A folder with the teachers' logits (`weightclass teach`), who are not asked for the epochs in it."""

    def __post_init__(self) -> None:
        if not self and (self.temperature, self.weight) != (4.0, 0.9):
            raise ValueError("temperature and weight are nothing without teachers: name them, or a cache")

    def __bool__(self) -> bool:
        return bool(self.teachers or self.cache)

    def digests(self) -> list[str]:
        """The teachers by hash: of their files or, where those are not there, as the cache tells."""
        told = read(self.cache)["teachers"] if self.cache else []
        own = [_digest(teacher) for teacher in self.teachers] or told
        own = [a or b for a, b in zip(own, told, strict=True)] if len(own) == len(told) else own
        if "" in own:
            raise UserError(f"distill.teachers: {self.teachers[own.index('')]}: no trained model there")
        return own

    def located(self) -> Distill:
        """With whole paths, for whoever comes from another folder."""
        named = lambda text: not text or HASH in text or text.lower() in champions.CLASSES  # noqa: E731
        whole = lambda text: text if named(text) else str(_place(text).absolute())  # noqa: E731
        return structs.replace(self, teachers=tuple(map(whole, self.teachers)), cache=whole(self.cache))

    def hashed(self) -> Distill:
        """By hash alone: what may go with the weights anywhere."""
        return structs.replace(self, teachers=tuple(self.digests()), cache="") if self else self


def model_file(teacher: str) -> Path:
    """Of a champion or a run's folder, or the file itself."""
    path = champions.find(teacher) or _place(teacher)
    return path / "model.safetensors" if path.is_dir() else path


def _digest(teacher: str) -> str:
    """`sha256:0123456789abcdef` of its file; empty where there is none."""
    if (path := model_file(teacher)).is_file():
        try:
            return _hashed(path, path.stat().st_mtime_ns)
        except OSError as error:
            raise UserError(f"distill.teachers: {teacher}: cannot be read ({error.strerror})") from None
    return teacher if teacher.startswith(HASH) else ""


@functools.lru_cache(64)
def _hashed(path: Path, _: int) -> str:
    return HASH + hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read(cache: str | Path) -> dict[str, Any]:
    """What the logits in a folder hang on. Raises UserError where there are none."""
    path = _place(cache) / HEADER
    try:
        told = {"teachers": []} | msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        return told | {"teachers": msgspec.convert(told["teachers"], list[str])}
    except OSError:
        raise UserError(f"{cache}: no logits there: `weightclass teach` with the same settings writes them") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}): remove the folder and `weightclass teach` anew") from None


def page(cache: str | Path, epoch: int) -> Path:
    """The file with the logits float16 [images, classes] of an epoch (from 0 on), in the order of its pictures."""
    return _place(cache) / f"{epoch:05d}.npy"


def _place(text: str | Path) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~somebody, whom nobody knows
        return Path(text)
