"""The sets of images that a recipe can name: found, fetched once if need be, checked, and split.

digits comes with scikit-learn and needs no network, CIFAR-10 and CIFAR-100 are read from their official folders,
and a folder of one's own pictures is decoded once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
import torch

from weightclass.config import Table
from weightclass.data import cifar, folder
from weightclass.data.dataset import Dataset, stratified_split
from weightclass.data.download import cache_folder
from weightclass.data.images import Fit
from weightclass.errors import UserError
from weightclass.runlog import Progress

Count = Annotated[int, msgspec.Meta(ge=0)]
Amount = Count | Annotated[float, msgspec.Meta(ge=0)]
"""A number of images or, below 1, a share of them."""

CIFARS = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}


class Data(Table):
    """Recipe table [data]: which images, and which of them are seen in training."""

    cosmetic: ClassVar[frozenset[str]] = frozenset({"path", "watch_test"})

    name: Literal["digits", "cifar10", "cifar100", "folder"] = "digits"
    """The set: scikit-learn's 8 x 8 digits, CIFAR-10, CIFAR-100, or a folder of pictures in class subfolders."""
    path: str = ""
    """Where a folder of pictures, or an official CIFAR folder (or its parent, or archive), lies; empty: look for it."""
    fit: Fit = "crop"
    """How a picture of another shape becomes `size`: crop its middle, pad it with black, or squash it."""
    size: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    """Height and width of a folder's pictures; 0: their own where all are alike and small, else at most 64."""
    colour: Literal["auto", "grey", "rgb"] = "auto"
    """Channels of a folder's pictures; auto: grey where all of them are."""
    validation: Amount = 0
    """Images (below 1: a share) held out of training to develop on; 0: train on all and read the test set once, at the
    end."""
    test: Amount = 0
    """Images (below 1: a share) of a folder without a test/ of its own that are set apart to judge on; 0: a fifth."""
    split_seed: int = 0
    """Draws the images of `test`, `validation` and `subset`."""
    watch_test: bool = False
    """Draw the test curve after every epoch; it chooses nothing."""
    subset: Count = 0
    """Train on this many images only, every class in proportion, for pilots; 0: on all."""

    def __post_init__(self) -> None:
        if self.path and self.name == "digits":
            raise ValueError("path is for the other sets; digits come with scikit-learn: drop path or set the name")
        unused = [key for key in ("size", "colour", "test") if getattr(self, key) not in (0, "auto")]
        if unused and self.name != "folder":
            raise ValueError(f'{unused[0]} is for name = "folder"; {self.name} is what it is: drop {unused[0]}')
        for key in ("validation", "test"):
            if (amount := getattr(self, key)) > 1 and amount % 1:
                raise ValueError(f"{key} = {amount}: write a whole number of images, or a share below 1")


@dataclass(frozen=True)
class Splits:
    """What to train on, what to develop on (None where nothing is held out), what to judge on once (None where a
    folder brings only train/ and validation/), and the files that could not be read."""

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    left_out: tuple[str, ...] = ()

    def digest(self) -> str:
        """The hash of all that a run sees, for its fingerprint."""
        parts = (self.train, self.validation, self.test)
        return "/".join(part.digest() if part else "none" for part in parts)


@dataclass(frozen=True)
class Found:
    """A set whose pixels nobody has read yet: image shape (C, H, W), number of classes, and how to load it."""

    image_shape: tuple[int, int, int]
    classes: int
    load: Callable[[Progress | None], Splits]


def find(config: Data) -> Found:
    """Look for the set that `config` names. Only a folder is touched for it. Raises UserError, one line."""
    if config.name == "folder":
        pictures = folder.find(config.path, config.size, config.colour)
        _check_splits(config, pictures)
        return Found(pictures.image_shape, len(pictures.classes), lambda progress: _folder(config, pictures, progress))
    if config.name == "digits":
        return Found((1, 8, 8), 10, lambda _: _split(config, *digits()))
    which = CIFARS[config.name]
    return Found((3, 32, 32), which.classes, lambda _: _split(config, *cifar.read(which, config.path)))


def brings_validation(config: Data) -> bool:
    """Whether it is a folder with validation images of its own. Raises UserError, one line."""
    return config.name == "folder" and "validation" in folder.find(config.path, config.size, config.colour).splits


def load(config: Data, progress: Progress | None = None) -> Splits:
    """The sets that `config` asks for, on the CPU.

    Raises UserError, one line, for missing, damaged or foreign files and for a split that cannot be had.
    """
    return find(config).load(progress)


def _split(config: Data, train: Dataset, test: Dataset | None, validation: Dataset | None = None) -> Splits:
    """`validation` is held out first, so `subset` leaves it as it is."""
    if config.validation:
        train, validation = stratified_split(train, _count(config.validation, train), config.split_seed)
    if config.subset:
        _, train = stratified_split(train, config.subset, config.split_seed, "subset")
    return Splits(train, validation, test)


def _count(amount: float, dataset: Dataset) -> int:
    """A share gives way where a class would be left out; a number is meant as it is."""
    least, most = dataset.bounds()
    return min(max(least, round(amount * len(dataset))), most) if amount < 1 else int(amount)


# --- digits ------------------------------------------------------------------------------------------------

DIGITS_TEST, DIGITS_SEED = 360, 0
"""Digits has no official test split: ours is 360 of its 1,797 images, the same ones for everybody."""


def digits() -> tuple[Dataset, Dataset]:
    """Train (1,437) and test (360): grey images uint8 [N, 1, 8, 8], the file's 0..16 spread over 0..255."""
    package = importlib.util.find_spec("sklearn")  # found, not imported: that would take a second
    where = package.submodule_search_locations[0] if package and package.submodule_search_locations else "sklearn"
    path = Path(where, "datasets", "data", "digits.csv.gz")
    if not path.is_file():
        raise UserError(f"data.name = 'digits': {path} is missing: run `pip install scikit-learn`, which brings it")
    table = np.loadtxt(path, delimiter=",")
    grey = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, 64].astype(np.int64)
    whole = Dataset(torch.from_numpy(grey), torch.from_numpy(labels), tuple("0123456789"))
    return stratified_split(whole, DIGITS_TEST, DIGITS_SEED, "test")


# --- a folder of pictures ----------------------------------------------------------------------------------

TEST_SHARE = 0.2


def _check_splits(config: Data, pictures: folder.Found) -> None:
    """What the folder brings, the recipe cannot ask for, and the other way round."""
    own = pictures.splits
    clashes = {"validation": "validation" in own, "test": len(own) > 1, "watch_test": "validation" in own}
    for key, clash in clashes.items():
        if clash and (value := getattr(config, key)):
            found = f"{pictures.root} has splits of its own ({', '.join(own)})"
            raise UserError(f"data.{key} = {value}: {found}: leave the key out")


def _folder(config: Data, pictures: folder.Found, progress: Progress | None) -> Splits:
    """Its own splits, or a stratified share as the test set where there is only one."""
    decoded = {split: folder.decode(pictures, split, config.fit, cache_folder(), progress) for split in pictures.splits}
    parts = {split: Dataset(part.images, part.labels, pictures.classes) for split, part in decoded.items()}
    if len(parts) == 1:
        if not parts["train"].bounds()[1]:
            cure = "add pictures, or put them into train/ and others into test/"
            raise UserError(f"{pictures.root}: with one picture a class there is none to judge on: {cure}")
        count = _count(config.test or TEST_SHARE, parts["train"])
        parts["train"], parts["test"] = stratified_split(parts["train"], count, config.split_seed, "test")
    splits = _split(config, parts["train"], parts.get("test"), parts.get("validation"))
    return replace(splits, left_out=tuple(line for part in decoded.values() for line in part.left_out))
