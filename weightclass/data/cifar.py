"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their official files, and single batches in the same formats.

One description a set says what differs, so both are found, proven, read and refused by the same code.
"""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightclass.data.dataset import Dataset
from weightclass.data.download import cache_folder, check_sha256, expand, fetch, unpack
from weightclass.data.pickles import as_text, load_dict
from weightclass.errors import UserError

PAGE = "https://www.cs.toronto.edu/~kriz/"
PIXELS = 3 * 32 * 32
Part = tuple[np.ndarray, np.ndarray]  # images uint8 [n, 3, 32, 32] and labels [n] of one file


@dataclass(frozen=True)
class Cifar:
    """What one of the two sets does not share with the other; pairs are of the binary and the python folder."""

    name: str
    archive: str  # of the binary folder
    sha256: str
    folders: tuple[str, str]
    files: tuple[tuple[str, int], ...]  # name (in the binary folder with .bin) and images of each; the test set last
    label_bytes: int  # before the pixels of a binary record; the last counts: CIFAR-100's coarse class comes first
    label_key: str
    names: tuple[str, ...]  # of the classes, in the order of their labels

    @property
    def classes(self) -> int:
        return len(self.names)

    @property
    def cure(self) -> str:
        return f"set data.path or WEIGHTCLASS_DATA to a whole {' or '.join(self.folders)} folder, or to {self.archive}"


CIFAR10 = Cifar(
    name="CIFAR-10",
    archive="cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folders=("cifar-10-batches-bin", "cifar-10-batches-py"),
    files=(*((f"data_batch_{number}", 10_000) for number in range(1, 6)), ("test_batch", 10_000)),
    label_bytes=1,
    label_key="labels",
    names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)
CIFAR100 = Cifar(
    name="CIFAR-100",
    archive="cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folders=("cifar-100-binary", "cifar-100-python"),
    files=(("train", 50_000), ("test", 10_000)),
    label_bytes=2,
    label_key="fine_labels",
    names=tuple(
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
        castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
        elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
        man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
        pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
        tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905 (a list is longer)
    ),
)


def read(which: Cifar, path: str = "") -> tuple[Dataset, Dataset]:
    """Train (50,000) and test (10,000): colour images uint8 [N, 3, 32, 32] in the files' order.

    `path`, an official folder, its parent or the binary archive, must hold the set. Without it WEIGHTCLASS_DATA,
    which may be there for the other set, is looked into, and then the cache. Only where neither place is named is
    the set downloaded: a name misspelt is told, not made up for with 160 MB.

    Raises UserError, one line, for what is missing, damaged, or the other set.
    """
    try:
        files = _locate(which, path)
        parts = [_read_file(which, file) for file in files]
    except OSError as error:
        raise UserError(f"{error.filename or which.name}: {error.strerror or error}: {which.cure}") from None
    _check(which, files, [labels for _, labels in parts])
    return _join(which, parts[:-1]), _join(which, parts[-1:])


def read_batch(path: Path) -> tuple[np.ndarray, list[str]]:
    """A batch to predict: images uint8 [n, 3, 32, 32] and their n ids; labels, where there are any, are ignored.

    A name in .bin means records of 3,073 bytes (CIFAR-10's, labelled), else 3,074 (CIFAR-100's), else 3,072 (pixels
    alone): the first of these that divides the file. Any other name means a pickled dict (see `pickles`) with `data`,
    uint8 [n, 3072] or, as competitions ship it, [n, 32, 32, 3]. Its `ids`, else its `filenames`, else "0", "1", ...
    are the ids. Raises UserError, one line, for anything else.
    """
    cure = "name a CIFAR batch, pickled or .bin"
    try:
        batch = {"data": _records(path, cure)} if path.suffix.lower() == ".bin" else load_dict(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}: {cure}") from None
    images = _images(path, batch, cure)
    if not len(images):
        raise UserError(f"{path}: holds no images: {cure}")
    return np.require(images, requirements=["C", "W"]), _ids(path, batch, len(images))


# --- where a set lies --------------------------------------------------------------------------------------


def _locate(which: Cifar, path: str) -> list[Path]:
    """The set's files, downloaded and unpacked where need be."""
    given, key = (path, "data.path") if path else (os.environ.get("WEIGHTCLASS_DATA", ""), "WEIGHTCLASS_DATA")
    where, cache = expand(given), cache_folder()
    other = CIFAR100 if which.name == CIFAR10.name else CIFAR10
    if given and (files := _find(which, where)):
        return files
    if where.is_file() and where.name != other.archive:
        check_sha256(where, which.sha256, f"{key} takes only the whole {which.archive}; fetch it anew, or {which.cure}")
        return _unpacked(which, where)
    if not path and (files := _find(which, cache)):
        return files
    if not given:
        archive = cache / which.archive
        fetch(PAGE + which.archive, which.sha256, archive, f"{which.cure}, or put the archive at {archive}")
        return _unpacked(which, archive)
    found = f"there is no {which.files[0][0]}.bin or {which.files[0][0]} in it or its folder"
    if where.is_file() or _find(other, where):
        found = f"holds {other.name}, not {which.name}"
    also = "" if path else f", and {cache} lacks it too (unset WEIGHTCLASS_DATA to download it)"
    raise UserError(f"{key} = {given}: {found}{also}: {which.cure}")


def _find(which: Cifar, where: Path) -> list[Path]:
    """The files in an official folder in `where`, else in `where`; one is enough, so that a missing one is told."""
    for folder in (*(where / name for name in which.folders), where):
        for suffix in (".bin", ""):
            files = [folder / f"{name}{suffix}" for name, _ in which.files]
            if any(file.is_file() for file in files):
                return files
    return []


def _unpacked(which: Cifar, archive: Path) -> list[Path]:
    files = [cache_folder() / which.folders[0] / f"{name}.bin" for name, _ in which.files]
    unpack(archive, files[0].parent, [file.name for file in files])
    return files


# --- what its files hold -----------------------------------------------------------------------------------


def _read_file(which: Cifar, file: Path) -> Part:
    if not file.is_file() or not file.stat().st_size:
        raise _damaged(which, file, "nothing" if file.is_file() else "no such file")
    if file.suffix == ".bin":
        content, width = np.fromfile(file, np.uint8), PIXELS + which.label_bytes
        if content.size % width:
            raise _damaged(which, file, f"{content.size:,} bytes, no whole records of {width:,}")
        records = content.reshape(-1, width)
        return records[:, -PIXELS:].reshape(-1, 3, 32, 32), records[:, -PIXELS - 1]
    batch = load_dict(file)
    images, labels = _images(file, batch, which.cure), batch.get(which.label_key)
    if isinstance(labels, list) and all(isinstance(label, int) and abs(label) < 2**63 for label in labels):
        labels = np.array(labels, np.int64)
    if not isinstance(labels, np.ndarray) or labels.shape != (len(images),):
        one = f"no {which.label_key!r}, one number for each of its {len(images)} images"
        raise UserError(f"{file}: holds {one}: {which.cure}")
    return images, labels


def _images(file: Path, batch: dict[str, Any], cure: str) -> np.ndarray:
    """uint8 [n, 3, 32, 32] of rows of red, green and blue planes, or of [n, 32, 32, 3]."""
    data = batch.get("data")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] not in ((PIXELS,), (32, 32, 3)):
        raise UserError(f"{file}: holds no 'data' of uint8 rows of {PIXELS} bytes: {cure}")
    return data.reshape(-1, 3, 32, 32) if data.ndim == 2 else np.ascontiguousarray(data.transpose(0, 3, 1, 2))


def _records(file: Path, cure: str) -> np.ndarray:
    """The pixels [n, 3072] of records with one, two or no label bytes."""
    content = np.fromfile(file, np.uint8)
    for width in (PIXELS + 1, PIXELS + 2, PIXELS):
        if content.size % width == 0:
            return content.reshape(-1, width)[:, -PIXELS:]
    raise UserError(f"{file}: {content.size:,} bytes are no whole records of 3,073, 3,074 or 3,072 bytes: {cure}")


def _ids(file: Path, batch: dict[str, Any], count: int) -> list[str]:
    values = batch.get("ids", batch.get("filenames", range(count)))
    try:
        values = values.tolist() if isinstance(values, np.ndarray) else values
        ids = [as_text(value) if isinstance(value, str | bytes) else str(operator.index(value)) for value in values]
    except (TypeError, ValueError):  # no list, neither text nor a whole number, or one of thousands of digits
        ids = []
    if len(ids) != count:
        raise UserError(f"{file}: its 'ids' or 'filenames' are not one number or name for each of its {count} images")
    return ids


def _check(which: Cifar, files: list[Path], labels: list[np.ndarray]) -> None:
    """Every file is whole, or all hold the same share of their images, as made-up sets do; labels are in range.

    A file cut between two records looks whole by itself; beside the others it does not.
    """
    alike = len({len(some) / images for some, (_, images) in zip(labels, which.files, strict=True)}) == 1
    for file, some, (_, images) in zip(files, labels, which.files, strict=True):
        if not len(some) or not (alike or len(some) == images):
            raise _damaged(which, file, f"{len(some):,} images")
        for place in np.flatnonzero((some < 0) | (some >= which.classes))[:1]:
            wrong = f"image {place} has label {some[place]}, expected 0 to {which.classes - 1}"
            raise UserError(f"{file}: {wrong}: damaged; {which.cure}")


def _damaged(which: Cifar, file: Path, found: str) -> UserError:
    images, width = dict(which.files)[file.stem], PIXELS + which.label_bytes * (file.suffix == ".bin")
    return UserError(f"{file}: expected {images * width:,} bytes ({images:,} images), found {found}: {which.cure}")


def _join(which: Cifar, parts: list[Part]) -> Dataset:
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    return Dataset(torch.from_numpy(images), torch.from_numpy(labels), which.names)
