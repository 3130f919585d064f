"""A folder of pictures becomes a labelled set: found, decoded once, kept in the cache as a raw file.

A kept set is a folder of `images.bin` and `index.json`, made under another name and renamed whole: whenever a process
dies, it is there or it is not. Its name hashes all that its bytes come from.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import statistics
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from weightclass.config import near_miss
from weightclass.data import images
from weightclass.data.ahead import ahead
from weightclass.data.download import alone, expand
from weightclass.data.images import shown
from weightclass.data.store import Stored
from weightclass.device import cores
from weightclass.errors import UserError
from weightclass.files import replace, safe_name
from weightclass.runlog import Progress

SPLITS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}
LAYOUT = "expected FOLDER/<class>/*.jpg or FOLDER/train/<class>/*.jpg (val/ and test/ may lie beside train/)"

Files = tuple[tuple[Path, int], ...]
"""Files with their labels."""


# --- finding -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A folder's classes and files, and the shape (C, H, W) that its images are to have.

    `splits` has "train" and, where there, "validation" and "test".
    """

    root: Path
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    splits: dict[str, Files]


def find(path: str, size: int = 0, colour: Literal["auto", "grey", "rgb"] = "auto") -> Found:
    """Look through the folder at `path`; of its pictures, only headers of at most `SAMPLE` are read.

    Classes are the names of its subfolders in plain order. Size 0: the images' own height and width where the sample
    has one, of at most 64, else a square of at most 64. Colour auto: grey where the whole sample is.

    Raises:
        UserError: one line that says what the folder lacks or has too much.
    """
    if not path:
        raise UserError(f"data.path is empty: set it to a folder of pictures: {LAYOUT}")
    root = expand(path)
    try:
        if not root.is_dir():
            raise UserError(f"{shown(root)}: {'a file, not a folder' if root.exists() else 'no such folder'}: {LAYOUT}")
        folders = _split_folders(root)
        classes = _classes(folders["train"])
        splits = {split: _files(folder, classes, split) for split, folder in folders.items()}
    except OSError as error:
        raise UserError(f"{shown(error.filename or path)}: {error.strerror or error}") from None
    return Found(root, classes, _image_shape(splits["train"], size, colour), splits)


def _subfolders(folder: Path) -> list[Path]:
    found = (path for path in folder.iterdir() if path.is_dir() and not images.hidden(path.name))
    return sorted(found, key=lambda path: path.name)  # Windows would compare paths without regard to case


def _split_folders(root: Path) -> dict[str, Path]:
    """`root` as "train", or its subfolders where they are named as splits are."""
    folders, known = _subfolders(root), list(chain(*SPLITS.values()))
    named = {split: [folder for folder in folders if folder.name.lower() in names] for split, names in SPLITS.items()}
    others = [folder for folder in folders if folder.name.lower() not in known]
    if others == folders or (others and not any(map(_subfolders, named["train"]))):
        return {"train": root}  # a class may be called train
    if not named["train"]:
        raise UserError(f"{shown(root)}: train/ is missing beside {folders[0].name}/: {LAYOUT}")
    for twins in named.values():
        if len(twins) > 1:
            raise UserError(f"{shown(root)}: {twins[0].name}/ and {twins[1].name}/ mean the same split: keep one")
    for folder in filter(images.listed, others):
        guess = near_miss(folder.name.lower(), known)
        raise UserError(f"{shown(folder)}: holds pictures beside train/, but is no split{guess} Rename or remove it")
    return {split: found[0] for split, found in named.items() if found}


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(path.name for path in _subfolders(folder))
    for name in names:
        if name.encode("utf-8", "replace").decode() != name:
            raise UserError(f"{shown(folder / name)}: the name of this class is not UTF-8 text: rename the folder")
    if len(names) < 2:
        held = "pictures, but no class folders" if images.listed(folder) else "no class folders"
        raise UserError(f"{shown(folder)}: holds {f'only one class folder, {names[0]}/' if names else held}: {LAYOUT}")
    return names


def _files(folder: Path, classes: tuple[str, ...], split: str) -> Files:
    """The images of every class, class by class; only train must have some of each."""
    there = {path.name: path for path in _subfolders(folder)}
    for name in sorted(there.keys() - set(classes)):
        raise UserError(f"{shown(there[name])}: train has no such class{near_miss(name, classes)}")
    listed = {name: images.listed(there[name]) if name in there else [] for name in classes}
    for name, found in listed.items():
        if split == "train" and not found:
            raise UserError(f"{shown(folder / name)}: no picture in it (.jpg, .png ...): add some or remove the folder")
    if not any(listed.values()):
        raise UserError(f"{shown(folder)}: no picture in any class of it: add some or remove the folder")
    return tuple((path, label) for label, found in enumerate(listed.values()) for path in found)


SAMPLE, LARGEST, SMALLEST = 1000, 64, 8


def _image_shape(files: Files, size: int, colour: str) -> tuple[int, int, int]:
    sample = files[:: math.ceil(len(files) / SAMPLE)]
    seen, problems = [], []
    for path, _ in sample:
        try:
            seen.append(images.peek(path))
        except UserError as error:
            problems.append(str(error))
    if not seen:
        raise UserError(f"none of {len(sample)} pictures can be read, first {problems[0]}")
    heights, widths, coloured = zip(*seen, strict=True)
    alike = len(set(heights)) == len(set(widths)) == 1 and max(heights[0], widths[0]) <= LARGEST
    side = size or max(SMALLEST, min(LARGEST, statistics.median_low(map(min, heights, widths))))
    height, width = (heights[0], widths[0]) if alike and not size else (side, side)
    return 3 if colour == "rgb" or (colour == "auto" and any(coloured)) else 1, height, width


# --- decoding ----------------------------------------------------------------------------------------------

VERSION = 2
"""Of what lies in the cache; a change in reading or resampling makes it another."""


@dataclass(frozen=True)
class Decoded:
    """Stored images, their labels int64 [N], and a line "PATH: reason" for each file that is not among them."""

    images: Stored
    labels: Tensor
    left_out: tuple[str, ...]


class _Index(msgspec.Struct, frozen=True):
    """What `index.json` holds: the shape of `images.bin`, its SHA-256, and what `Decoded` has."""

    shape: tuple[int, int, int, int]
    sha256: str
    labels: list[int]
    left_out: tuple[str, ...]


def decode(found: Found, split: str, fit: images.Fit, cache: Path, progress: Progress | None = None) -> Decoded:
    """The images of `split`, decoded into `cache` unless they lie there. `progress(done, total)` counts files.

    Raises:
        UserError: no room or no right to write, a file that may not be read, a class of train or a whole split
            without a readable image.
    """
    name = safe_name(found.root.resolve().name)[:40]
    folder = cache / f"{name}-{split}-{_key(found, split, fit)}"
    if kept := _kept(folder):
        return kept
    try:
        with alone(folder):
            for dead in cache.glob(f".{folder.name}-*.tmp"):
                shutil.rmtree(dead, ignore_errors=True)
            if not _kept(folder):  # while we waited
                with TemporaryDirectory(dir=cache, prefix=f".{folder.name}-", suffix=".tmp") as work:
                    _build(found, split, fit, Path(work, "set"), progress)
                    shutil.rmtree(folder, ignore_errors=True)
                    replace(Path(work, "set"), folder)
    except OSError as error:
        cure = "free some space there, or set WEIGHTCLASS_CACHE to another folder"
        raise UserError(f"{shown(cache)}: cannot keep decoded pictures ({error.strerror or error}): {cure}") from None
    if kept := _kept(folder):
        return kept
    raise UserError(f"{shown(folder)}: gone or damaged while it was made: run the same command again")


def _key(found: Found, split: str, fit: str) -> str:
    """16 hex digits of everything that decides the bytes; place, size and times stand for a file's content."""
    import PIL

    where = os.fsencode(found.root.resolve())  # two folders may hold files of the same names, sizes and times
    digest = hashlib.sha256(where + json.dumps([VERSION, PIL.__version__, found.image_shape, fit]).encode())
    for path, label in found.splits[split]:
        try:
            status = path.stat()
            state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        except OSError:  # a link to nowhere
            state = None
        digest.update(json.dumps([path.relative_to(found.root).as_posix(), label, state]).encode())
    return digest.hexdigest()[:16]


def _kept(folder: Path) -> Decoded | None:
    """The set in `folder`, None where it is missing or damaged."""
    try:
        index = msgspec.json.decode((folder / "index.json").read_bytes(), type=_Index)
        size = (folder / "images.bin").stat().st_size
        if size != math.prod(index.shape) or len(index.labels) != index.shape[0]:
            return None
        stored = Stored(folder / "images.bin", index.shape, index.sha256)
    except (OSError, ValueError, msgspec.DecodeError):
        return None
    return Decoded(stored, torch.tensor(index.labels), index.left_out)


def _build(found: Found, split: str, fit: images.Fit, folder: Path, progress: Progress | None) -> None:
    """Decode in threads (Pillow frees the interpreter lock), write in the files' order, the index last."""
    folder.mkdir()
    files, digest, labels = found.splits[split], hashlib.sha256(), []
    broken: list[tuple[int, str]] = []
    with (folder / "images.bin").open("wb") as file:
        jobs = (partial(_row, path, found.image_shape, fit) for path, _ in files)
        rows = ahead(jobs, cores(), 16 * cores())
        for done, ((path, label), row) in enumerate(zip(files, rows, strict=True), start=1):
            if isinstance(row, str):
                broken.append((label, f"{shown(path.relative_to(found.root).as_posix())}: {row}"))
            else:
                file.write(row.data)
                digest.update(row.data)
                labels.append(label)
            if progress and (done % 64 == 0 or done == len(files)):
                progress(done, len(files))
        file.flush()
        os.fsync(file.fileno())
    _check_enough(found, split, labels, broken)
    shape = (len(labels), *found.image_shape)
    index = _Index(shape, digest.hexdigest(), labels, tuple(line for _, line in broken))
    (folder / "index.json").write_bytes(msgspec.json.encode(index))


def _row(path: Path, image_shape: tuple[int, int, int], fit: images.Fit) -> np.ndarray | str:
    """The image, or the reason why there is none; what is no fault of the content is an error, for it may pass."""
    try:
        return images.read(path.read_bytes(), image_shape, fit)
    except UserError as error:
        return str(error).removeprefix("image: ")
    except FileNotFoundError:
        return "no such file"  # a link to nowhere
    except OSError as error:
        raise UserError(f"{shown(path)}: {error.strerror or error}: make it readable or remove it") from None


def _check_enough(found: Found, split: str, labels: list[int], broken: list[tuple[int, str]]) -> None:
    """Every class of train, or the whole of another split, has an image left."""
    lost = sorted(set(range(len(found.classes))) - set(labels)) if split == "train" else []
    if lost or not labels:
        lines = [line for label, line in broken if not lost or label == lost[0]]
        what = f"class {found.classes[lost[0]]!r}" if lost else f"the {split} set"
        told = f"none of its {len(lines)} pictures can be read, first {lines[0]}"
        raise UserError(f"{what} of {shown(found.root)}: {told}")
