"""Every set that a recipe can name is found, loaded and split; a folder brings its splits or gets one."""

from __future__ import annotations

import builtins
import csv
import gzip
import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.reference import cifar
from weightclass import config
from weightclass.data import sources
from weightclass.data.sources import Data, Splits, load
from weightclass.errors import UserError


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data but what a test makes up."""
    monkeypatch.delenv("WEIGHTCLASS_DATA", raising=False)
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "cache"))


def digests(splits: Splits) -> tuple[str, ...]:
    return tuple(part.digest() for part in (splits.train, splits.validation, splits.test) if part)


def pictures(root: Path, *splits: str, each: int = 5) -> Path:
    """Three classes of `each`, 2 * `each` and one picture, in each of `splits` (or without any)."""
    for number, folder in enumerate([root / split for split in splits] or [root]):
        for label, count in (("a", each), ("b", 2 * each), ("c", 1)):
            (folder / label).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (9, 9), (40 * number, 80 * "abc".index(label), i)).save(folder / label / f"{i}.png")
    return root


# --- the table ---------------------------------------------------------------------------------------------


def test_table_reads_back_and_path_and_watch_test_change_no_fingerprint():
    table = Data(name="cifar10", path="/somewhere", validation=5, watch_test=True)
    assert config.build(config.to_tree(table), Data, "recipe") == table
    assert config.fingerprint(table) == config.fingerprint(Data(name="cifar10", validation=5))
    for other in (Data(), Data(name="cifar10", validation=6), Data(name="cifar10", validation=5, split_seed=1)):
        assert config.fingerprint(table) != config.fingerprint(other)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"validation": -1}, "validation = -1: expected int >= 0"),
        ({"name": "cifar"}, "name = 'cifar': did you mean cifar10?"),
        ({"path": "/x"}, "path is for the other sets"),
        ({"name": "cifar10", "size": 3}, 'size is for name = "folder"'),
        ({"test": 0.3}, 'test is for name = "folder"'),
        ({"validation": 1.5}, "validation = 1.5: write a whole number of images, or a share below 1"),
        ({"name": "folder", "fit": "stretch"}, "fit = 'stretch': choose from crop, pad, squash"),
    ],
)
def test_table_refuses(tree: dict, message: str):
    with pytest.raises(UserError) as caught:
        config.build(tree, Data, "recipe")
    assert message in str(caught.value)


# --- digits ------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_spread_over_a_byte():
    splits = load(Data())
    assert (len(splits.train), splits.validation, len(splits.test)) == (1437, None, 360)
    assert splits.train.image_shape == (1, 8, 8)
    assert splits.train.classes == tuple("0123456789")
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    with gzip.open(Path(str(package.origin)).parent / "datasets/data/digits.csv.gz", "rt", encoding="utf-8") as file:
        rows = [list(map(int, row)) for row in csv.reader(file)]
    expected = sorted((label, [round(value * 255 / 16) for value in row]) for *row, label in rows)
    found = [
        (label, row)
        for part in (splits.train, splits.test)
        for label, row in zip(part.labels.tolist(), part.images.flatten(1).tolist(), strict=True)
    ]
    assert sorted(found) == expected


def test_digits_split_is_everybodys():
    train, test = digests(load(Data()))
    assert train == "9220c1cc70056b9db86c14580483c3560aeca3a19d44b656577a1e51282c3a7a"
    assert test == "a1de74fe120c3666b811ec22663f3ed70d16cb615ba871916586594017c065b2"
    assert load(Data()).test.labels.bincount().tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]


def test_digits_import_nothing_heavy(monkeypatch: pytest.MonkeyPatch):
    """scikit-learn takes a second and 100 MB; nor is what a download needs wanted here."""
    real, asked = builtins.__import__, set()

    def watched(name: str, *args: object, **kwargs: object) -> object:
        asked.add(name.partition(".")[0])
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", watched)
    load(Data())
    assert not asked & {"sklearn", "scipy", "pooch", "requests", "rich", "filelock"}


@pytest.mark.parametrize("found", [None, "package without the file"])
def test_digits_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: str | None):
    from importlib.machinery import ModuleSpec

    spec = ModuleSpec("sklearn", None, is_package=True) if found else None
    if spec:
        spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda _: spec)
    with pytest.raises(UserError, match=r"digits\.csv\.gz is missing: run `pip install scikit-learn`"):
        load(Data())


def test_what_is_found_is_what_loading_gives(tmp_path: Path):
    ten = cifar.write_binary(tmp_path / "ten", cifar.make_up())
    hundred = cifar.write_binary(tmp_path / "hundred", cifar.make_up100())
    tables = [Data(), Data(name="cifar10", path=str(ten)), Data(name="cifar100", path=str(hundred))]
    tables.append(Data(name="folder", path=str(pictures(tmp_path / "pictures"))))
    for table in tables:
        found = sources.find(table)
        splits = found.load(None)
        assert (found.image_shape, found.classes) == (splits.train.image_shape, len(splits.train.classes))
    assert [sources.find(table).classes for table in tables] == [10, 10, 100, 3]


# --- splits ------------------------------------------------------------------------------------------------


def test_validation_and_subset_come_out_of_training_only():
    plain, held = load(Data()), load(Data(validation=200))
    assert held.validation is not None
    assert (len(held.train), len(held.validation)) == (1237, 200)
    assert held.test.digest() == plain.test.digest()
    small = load(Data(validation=200, subset=100, split_seed=0))
    assert small.validation is not None
    assert small.train.labels.bincount(minlength=10).min() >= 9
    assert len(small.train) == 100
    assert digests(small)[1:] == digests(held)[1:]
    rows = {bytes(row) for row in held.train.images.flatten(1).numpy()}
    assert {bytes(row) for row in small.train.images.flatten(1).numpy()} <= rows
    assert digests(load(Data(validation=200, split_seed=1)))[1] != digests(held)[1]


@pytest.mark.parametrize("key", ["validation", "subset"])
def test_a_split_too_large_names_its_key(key: str):
    with pytest.raises(UserError, match=rf"^data\.{key} = 1437: "):
        load(Data(**{key: 1437}))


# --- a folder of pictures ----------------------------------------------------------------------------------


def folder(root: Path, **keys: float) -> Splits:
    return load(Data(name="folder", path=str(root), **keys))


def sizes(splits: Splits) -> list[list[int] | None]:
    return [part.class_sizes() if part else None for part in (splits.train, splits.validation, splits.test)]


def test_a_folder_without_splits_gets_a_test_set_of_a_fifth(tmp_path: Path):
    splits = folder(pictures(tmp_path / "p"))
    assert sizes(splits) == [[4, 8, 1], None, [1, 2, 0]]
    assert splits.train.classes == ("a", "b", "c")
    again = folder(tmp_path / "p")
    assert digests(again) == digests(splits) != digests(folder(tmp_path / "p", split_seed=1))
    assert sizes(folder(tmp_path / "p", test=0.5)) == [[2, 5, 1], None, [3, 5, 0]]
    assert sizes(folder(tmp_path / "p", test=6, validation=2)) == [[2, 5, 1], [1, 1, 0], [2, 4, 0]]
    assert sizes(folder(tmp_path / "p", test=0.01)) == [[4, 9, 1], None, [1, 1, 0]]  # one of each class at least


def test_a_folder_keeps_the_splits_that_it_has(tmp_path: Path):
    assert sizes(folder(pictures(tmp_path / "two", "train", "test"))) == [[5, 10, 1], None, [5, 10, 1]]
    assert sizes(folder(tmp_path / "two", validation=0.25)) == [[4, 7, 1], [1, 3, 0], [5, 10, 1]]
    assert sizes(folder(pictures(tmp_path / "val", "train", "val"))) == [[5, 10, 1], [5, 10, 1], None]
    three = folder(pictures(tmp_path / "three", "Training", "valid", "testing"))
    assert sizes(three) == [[5, 10, 1]] * 3
    assert [int(part.images[0:1][0, 0, 0, 0]) for part in (three.train, three.validation, three.test) if part] == [
        0,
        40,
        80,
    ]


@pytest.mark.parametrize(
    ("splits", "keys", "message"),
    [
        (("train", "val"), {"validation": 2}, r"data.validation = 2: .* has splits of its own \(train, validation\)"),
        (("train", "test"), {"test": 2}, r"data.test = 2: .* has splits of its own \(train, test\)"),
        (("train", "val", "test"), {"watch_test": True}, "data.watch_test = True: .* has splits of its own"),
        ((), {"test": 15}, "data.test = 15: of 16 images in 3 classes, .* choose 2 to 13, or 0 for none"),
    ],
)
def test_what_a_folder_brings_cannot_be_asked_for(tmp_path: Path, splits: tuple, keys: dict, message: str):
    with pytest.raises(UserError, match=message):
        folder(pictures(tmp_path / "p", *splits), **keys)


def test_whether_it_brings_validation_images(tmp_path: Path):
    brings = {
        names: sources.brings_validation(
            Data(name="folder", path=str(pictures(tmp_path / "-".join(("p", *names)), *names)))
        )
        for names in ((), ("train", "test"), ("train", "val"))
    }
    assert list(brings.values()) == [False, False, True]
    assert not sources.brings_validation(Data(name="digits"))


def test_broken_files_are_named_and_the_pixels_are_not_copied(tmp_path: Path):
    root = pictures(tmp_path / "p")
    (root / "b" / "3.png").write_bytes(b"")
    splits = folder(root)
    assert splits.left_out == ("b/3.png: empty file",)
    assert sizes(splits) == [[4, 7, 1], None, [1, 2, 0]]
    assert not isinstance(splits.train.images, torch.Tensor)
    assert len(list((tmp_path / "cache").glob("*/images.bin"))) == 1
