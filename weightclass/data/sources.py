"""The sets of images that a recipe can name: found, fetched once if need be, checked, and split.

digits comes with scikit-learn and needs no network. CIFAR-10 is read from its official folder, binary or
python, wherever that lies: `data.path`, `WEIGHTCLASS_DATA`, the cache, or the official page, in this order.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
import torch

from weightclass.config import Table
from weightclass.data.dataset import Dataset, stratified_split
from weightclass.data.download import cache_folder, check_sha256, fetch, unpack
from weightclass.data.pickles import as_text, load_dict
from weightclass.errors import UserError

Count = Annotated[int, msgspec.Meta(ge=0)]


class Data(Table):
    """Recipe table [data]: which images, and which of them are seen in training."""

    cosmetic: ClassVar[frozenset[str]] = frozenset({"path", "watch_test"})

    name: Literal["digits", "cifar10"] = "digits"
    """The set: scikit-learn's 8 x 8 digits, or CIFAR-10."""
    path: str = ""
    """Where an official CIFAR-10 folder (or its parent, or cifar-10-binary.tar.gz) lies; empty: look for it."""
    validation: Count = 0
    """Images held out of training to develop on; 0: train on all and read the test set once, at the end."""
    split_seed: int = 0
    """Draws the images of `validation` and `subset`."""
    watch_test: bool = False
    """Draw the test curve after every epoch; it chooses nothing."""
    subset: Count = 0
    """Train on this many images only, every class in proportion, for pilots; 0: on all."""

    def __post_init__(self) -> None:
        if self.path and self.name == "digits":
            raise ValueError('path is for name = "cifar10"; digits come with scikit-learn: drop path or set the name')


@dataclass(frozen=True)
class Splits:
    """What to train on, what to develop on (None where nothing is held out), what to judge on once."""

    train: Dataset
    validation: Dataset | None
    test: Dataset

    def digest(self) -> str:
        """The hash of all that a run sees, for its fingerprint."""
        parts = (self.train, self.validation, self.test)
        return "/".join(part.digest() if part else "none" for part in parts)


def load(config: Data) -> Splits:
    """The sets that `config` asks for, on the CPU.

    `validation` is held out first, so `subset` leaves it as it is. Raises UserError, one line, for missing,
    damaged or foreign files and for a split that cannot be had.
    """
    train, test = digits() if config.name == "digits" else cifar10(config.path)
    validation = None
    if config.validation:
        train, validation = stratified_split(train, config.validation, config.split_seed)
    if config.subset:
        _, train = stratified_split(train, config.subset, config.split_seed, "subset")
    return Splits(train, validation, test)


def facts(config: Data) -> tuple[tuple[int, int, int], int]:
    """Image shape (C, H, W) and number of classes, known before any data is touched."""
    return {"digits": ((1, 8, 8), 10), "cifar10": ((3, 32, 32), 10)}[config.name]


# --- digits ------------------------------------------------------------------------------------------------

DIGITS_TEST, DIGITS_SEED = 360, 0
"""Digits has no official test split: ours is 360 of its 1,797 images, the same ones for everybody."""


def digits() -> tuple[Dataset, Dataset]:
    """Train (1,437) and test (360): grey images uint8 [N, 1, 8, 8], the file's 0..16 spread over 0..255."""
    package = importlib.util.find_spec("sklearn")  # found, not imported: that would take a second
    folder = package.submodule_search_locations[0] if package and package.submodule_search_locations else "sklearn"
    path = Path(folder, "datasets", "data", "digits.csv.gz")
    if not path.is_file():
        raise UserError(f"data.name = 'digits': {path} is missing: run `pip install scikit-learn`, which brings it")
    table = np.loadtxt(path, delimiter=",")
    grey = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, 64].astype(np.int64)
    whole = Dataset(torch.from_numpy(grey), torch.from_numpy(labels), tuple("0123456789"))
    return stratified_split(whole, DIGITS_TEST, DIGITS_SEED, "test")


# --- CIFAR-10: where it lies -------------------------------------------------------------------------------

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE, BINARY, PYTHON = "cifar-10-binary.tar.gz", "cifar-10-batches-bin", "cifar-10-batches-py"
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
CURE = f"set data.path or WEIGHTCLASS_DATA to a whole {BINARY} or {PYTHON} folder, or to {ARCHIVE}"


def cifar10(path: str = "") -> tuple[Dataset, Dataset]:
    """Train (50,000) and test (10,000): colour images uint8 [N, 3, 32, 32] in the files' order (Krizhevsky 2009)."""
    try:
        return _read_folder(_locate(path))
    except OSError as error:
        raise UserError(f"{error.filename or 'CIFAR-10'}: {error.strerror or error}: {CURE}") from None


def _locate(path: str) -> Path:
    """The folder that holds the batches, downloaded and unpacked where nobody has it."""
    given, key = (path, "data.path") if path else (os.environ.get("WEIGHTCLASS_DATA", ""), "WEIGHTCLASS_DATA")
    where = Path(given).expanduser() if given else cache_folder()
    if folder := _find(where):
        return folder
    if not given:
        return _download()
    if where.is_file():
        check_sha256(where, SHA256, f"{key} takes only the whole official archive; fetch it anew, or {CURE}")
        return _unpacked(where)
    raise UserError(f"{key} = {given}: there is no data_batch_1.bin or data_batch_1 in it or its folder: {CURE}")


def _find(where: Path) -> Path | None:
    """`where` or the official folder below it; any batch marks it, so that a missing one is told by name."""
    for folder in (where, where / BINARY, where / PYTHON):
        if any((folder / name).is_file() or (folder / f"{name}.bin").is_file() for name in BATCHES):
            return folder
    return None


def _download() -> Path:
    archive = cache_folder() / ARCHIVE
    fetch(URL, SHA256, archive, f"{CURE}, or put the archive at {archive}")
    return _unpacked(archive)


def _unpacked(archive: Path) -> Path:
    folder = cache_folder() / BINARY
    unpack(archive, folder, [*(f"{name}.bin" for name in BATCHES), "batches.meta.txt"])
    return folder


# --- CIFAR-10: what it holds -------------------------------------------------------------------------------

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE, PIXELS, PER_FILE = (3, 32, 32), 3072, 10_000

Part = tuple[np.ndarray, np.ndarray]
"""Pixels uint8 [n, 3072] (red, green, blue planes) and labels [n] of one file."""


def _read_folder(folder: Path) -> tuple[Dataset, Dataset]:
    binary = any((folder / f"{name}.bin").is_file() for name in BATCHES)
    paths = [folder / (f"{name}.bin" if binary else name) for name in BATCHES]
    parts = [(_read_binary if binary else _read_pickle)(path) for path in paths]
    classes = _class_names(folder / ("batches.meta.txt" if binary else "batches.meta"))
    _check_parts(paths, parts, binary)
    return _join(parts[:-1], classes), _join(parts[-1:], classes)


def _read_binary(path: Path) -> Part:
    """Records of one label byte and 3,072 pixel bytes."""
    found = path.stat().st_size if path.is_file() else 0
    if not found or found % (1 + PIXELS):
        raise _damaged(path, 1 + PIXELS, found)
    records = np.fromfile(path, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0]


def _read_pickle(path: Path) -> Part:
    """A dict with `data` uint8 [n, 3072] and `labels`, n numbers."""
    if not path.is_file():
        raise _damaged(path, PIXELS, 0)
    batch = load_dict(path)
    pixels, labels = batch.get("data"), batch.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXELS,):
        raise UserError(f"{path}: holds no 'data' of uint8 rows of {PIXELS} bytes: {CURE}")
    if isinstance(labels, list) and all(isinstance(label, int) for label in labels):
        labels = np.array(labels)
    if not isinstance(labels, np.ndarray) or labels.shape != (len(pixels),):
        raise UserError(f"{path}: holds no 'labels', one number for each of its {len(pixels)} images: {CURE}")
    return pixels, labels


def _check_parts(paths: list[Path], parts: list[Part], binary: bool) -> None:
    """Every file holds 10,000 images (all alike will do, for made-up sets) with labels below 10.

    A file cut between two records looks whole by itself; beside the others it does not.
    """
    alike = len({len(labels) for _, labels in parts}) == 1
    for path, (_, labels) in zip(paths, parts, strict=True):
        if not len(labels) or not (alike or len(labels) == PER_FILE):
            raise _damaged(path, PIXELS + binary, len(labels) * (PIXELS + binary))
        for place in np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))[:1]:
            raise UserError(f"{path}: image {place} has label {labels[place]}, expected 0 to 9: damaged; {CURE}")


def _damaged(path: Path, record: int, found: int) -> UserError:
    what = f"found {found:,}" if found else "found none" if path.is_file() else "found no such file"
    return UserError(f"{path}: expected {PER_FILE * record:,} bytes ({PER_FILE:,} images), {what}: {CURE}")


def _join(parts: list[Part], classes: tuple[str, ...]) -> Dataset:
    pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, *SHAPE)
    labels = np.concatenate([labels for _, labels in parts]).astype(np.int64)
    return Dataset(torch.from_numpy(pixels), torch.from_numpy(labels), classes)


def _class_names(path: Path) -> tuple[str, ...]:
    """The ten names in the folder's own list, or the well-known ones where it has none."""
    if not path.is_file():
        return CLASSES
    if path.suffix == ".txt":
        names = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    else:
        listed = load_dict(path).get("label_names")
        names = [as_text(name) for name in listed] if isinstance(listed, list) else []
    if len(names) != len(CLASSES):
        raise UserError(f"{path}: lists {len(names)} class names, expected {len(CLASSES)}: mend or remove it")
    return tuple(name.strip() for name in names)
