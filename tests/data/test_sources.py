"""Both sets read to what their files hold; every way of having them wrong is one line with a cure."""

from __future__ import annotations

import builtins
import csv
import gzip
import hashlib
import importlib.util
import os
import tarfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from tests.reference import cifar
from tests.reference import data as twin
from weightclass import config
from weightclass.data import sources
from weightclass.data.sources import Data, Splits, load
from weightclass.errors import UserError

WRITERS = {"cifar-10-batches-bin": cifar.write_binary, "cifar-10-batches-py": cifar.write_python}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data but what a test makes up, and no network."""
    monkeypatch.delenv("WEIGHTCLASS_DATA", raising=False)
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


def cifar10(path: Path | str = "", **keys: int) -> Splits:
    return load(Data(name="cifar10", path=str(path), **keys))


def digests(splits: Splits) -> tuple[str, ...]:
    return tuple(part.digest() for part in (splits.train, splits.validation, splits.test) if part)


def refusal(path: Path | str = "", **keys: int) -> str:
    with pytest.raises(UserError) as caught:
        cifar10(path, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
        ({"path": "/x"}, 'path is for name = "cifar10"'),
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
    with gzip.open(Path(str(package.origin)).parent / "datasets/data/digits.csv.gz", "rt") as file:
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


def test_facts_are_what_loading_finds(tmp_path: Path):
    folder = cifar.write_binary(tmp_path / "bin", cifar.make_up())
    for table in (Data(), Data(name="cifar10", path=str(folder))):
        train = load(table).train
        assert sources.facts(table) == (train.image_shape, len(train.classes))


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


# --- CIFAR-10: reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["python2", 2, 4, 5])
def test_both_layouts_give_the_same_datasets(tmp_path: Path, protocol: int | str):
    parts = cifar.make_up()
    binary = cifar10(cifar.write_binary(tmp_path / "bin", parts))
    python = cifar10(cifar.write_python(tmp_path / "py", parts, protocol))
    assert digests(binary) == digests(python)
    assert binary.train.classes == python.train.classes == cifar.CLASSES


def test_reading_equals_record_by_record(tmp_path: Path):
    folder = cifar.write_binary(tmp_path / "bin", cifar.make_up(10))
    splits = cifar10(folder)
    for part, files in ((splits.train, cifar.FILES[:5]), (splits.test, cifar.FILES[5:])):
        labels, rows = map(list, zip(*(twin.read_binary(folder / f"{name}.bin") for name in files), strict=True))
        assert part.labels.tolist() == list(chain.from_iterable(labels))
        assert part.images.flatten(1).tolist() == list(chain.from_iterable(rows))
        assert part.image_shape == (3, 32, 32)
        assert part.images.is_contiguous()


@pytest.mark.parametrize("layout", WRITERS)
def test_class_names_without_a_list_are_the_well_known_ones(tmp_path: Path, layout: str):
    folder = WRITERS[layout](tmp_path / "set", cifar.make_up())
    for meta in folder.glob("batches.meta*"):
        meta.unlink()
    assert cifar10(folder).test.classes == sources.CLASSES


# --- CIFAR-10: finding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("parent", [False, True])
def test_found_through_path_variable_or_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, parent: bool
):
    folder = WRITERS[layout](tmp_path / "cache" / layout, cifar.make_up())
    where = folder.parent if parent else folder
    by_path = cifar10(where)
    by_cache = cifar10()
    monkeypatch.setenv("WEIGHTCLASS_DATA", str(where))
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "empty"))
    by_variable = cifar10()
    assert digests(by_path) == digests(by_variable) == digests(by_cache)


def test_path_comes_before_variable_before_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders = [tmp_path / "path", tmp_path / "variable", tmp_path / "cache" / "cifar-10-batches-bin"]
    own = [
        digests(cifar10(cifar.write_binary(folder, cifar.make_up(seed=seed)))) for seed, folder in enumerate(folders)
    ]
    assert len(set(own)) == 3
    assert digests(cifar10()) == own[2]
    monkeypatch.setenv("WEIGHTCLASS_DATA", str(folders[1]))
    assert digests(cifar10()) == own[1]
    assert digests(cifar10(folders[0])) == own[0]


@pytest.mark.parametrize("key", ["data.path", "WEIGHTCLASS_DATA"])
@pytest.mark.parametrize("kind", ["absent", "empty"])
def test_a_place_without_data_is_refused_by_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, kind: str
):
    where = tmp_path / "place"
    if kind == "empty":
        where.mkdir()
    if key == "WEIGHTCLASS_DATA":
        monkeypatch.setenv(key, str(where))
    message = refusal(where if key == "data.path" else "")
    assert message.startswith(f"{key} = {where}: there is no data_batch_1.bin")
    assert "set data.path or WEIGHTCLASS_DATA" in message


# --- CIFAR-10: the archive ---------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up archive that passes for the official one."""
    folder = cifar.write_binary(tmp_path / "packed" / "cifar-10-batches-bin", cifar.make_up())
    path = tmp_path / "downloads" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(sources, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_an_archive_by_path_is_checked_and_unpacked_in_the_cache(tmp_path: Path, archive: Path):
    expected = digests(cifar10(tmp_path / "packed"))
    assert digests(cifar10(archive)) == expected
    assert sorted(path.name for path in (tmp_path / "cache" / "cifar-10-batches-bin").iterdir()) == sorted(
        [*(f"{name}.bin" for name in cifar.FILES), "batches.meta.txt"]
    )
    assert digests(cifar10()) == expected
    archive.write_bytes(archive.read_bytes()[:-1])
    assert f"{archive}: its sha256 is " in refusal(archive)


def test_an_archive_put_in_the_cache_needs_no_network(tmp_path: Path, archive: Path):
    expected = digests(cifar10(tmp_path / "packed"))
    (tmp_path / "cache").mkdir()
    archive.rename(tmp_path / "cache" / archive.name)
    assert digests(cifar10()) == expected


def test_without_data_or_network_the_ways_out_are_named(tmp_path: Path):
    message = refusal()
    assert message.startswith(f"cannot download {sources.URL} (ConnectionError: ")
    assert "set data.path or WEIGHTCLASS_DATA" in message
    assert message.endswith(f"or put the archive at {tmp_path / 'cache' / 'cifar-10-binary.tar.gz'}")


def test_the_official_archive_has_a_whole_hash():
    assert len(bytes.fromhex(sources.SHA256)) == 32


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "file" / "cache"))
    assert refusal().startswith(f"{tmp_path / 'file'}")


# --- CIFAR-10: damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "found"),
    [(None, "no such file"), (0, "none"), (3072, "3,072"), (20 * 3073 - 1, "61,459"), (10 * 3073, "30,730")],
)
def test_a_binary_file_of_the_wrong_size_is_named(tmp_path: Path, size: int | None, found: str):
    folder = cifar.write_binary(tmp_path / "bin", cifar.make_up())
    path = folder / "data_batch_1.bin"
    content = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(content[:size])
    assert refusal(folder).startswith(
        f"{path}: expected 30,730,000 bytes (10,000 images), found {found}: set data.path"
    )


def test_among_official_files_the_odd_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "PER_FILE", 20)
    folder = cifar.write_binary(tmp_path / "bin", cifar.make_up())
    path = folder / "test_batch.bin"
    path.write_bytes(path.read_bytes()[: 10 * 3073])
    assert refusal(folder).startswith(f"{path}: expected 61,460 bytes (20 images), found 30,730: ")


@pytest.mark.parametrize("layout", WRITERS)
def test_a_label_out_of_range_is_named(tmp_path: Path, layout: str):
    parts = cifar.make_up()
    parts["data_batch_4"][1][7:9] = 10
    folder = WRITERS[layout](tmp_path / "set", parts)
    assert f"data_batch_4{'.bin' if layout.endswith('bin') else ''}: image 7 has label 10, expected 0 to 9" in refusal(
        folder
    )


@pytest.mark.parametrize("layout", WRITERS)
def test_a_list_of_nine_names_is_refused(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cifar, "CLASSES", cifar.CLASSES[:9])
    folder = WRITERS[layout](tmp_path / "set", cifar.make_up())
    assert "lists 9 class names, expected 10" in refusal(folder)


@pytest.mark.parametrize("content", [{}, {"label_names": 3}])
def test_a_list_of_names_without_names_is_refused(tmp_path: Path, content: dict):
    folder = cifar.write_python(tmp_path / "py", cifar.make_up())
    (folder / "batches.meta").write_bytes(cifar.dump(content))
    assert "batches.meta: lists 0 class names" in refusal(folder)


DATA = np.zeros((20, 3072), np.uint8)


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ({"labels": [0] * 20}, "no 'data'"),
        ({"data": [0], "labels": [0]}, "no 'data'"),
        ({"data": DATA.astype(np.int32), "labels": [0] * 20}, "no 'data'"),
        ({"data": DATA[:, :-1], "labels": [0] * 20}, "no 'data'"),
        ({"data": DATA}, "no 'labels'"),
        ({"data": DATA, "labels": [0] * 19}, "no 'labels'"),
        ({"data": DATA, "labels": ["0"] * 20}, "no 'labels'"),
        ({"data": DATA[:0], "labels": []}, "found none"),
        ({"data": DATA[:10], "labels": [0] * 10}, "expected 30,720,000 bytes (10,000 images), found "),
    ],
)
def test_a_pickle_that_is_no_batch_is_named(tmp_path: Path, batch: dict, reason: str):
    folder = cifar.write_python(tmp_path / "py", cifar.make_up())
    (folder / "data_batch_1").write_bytes(cifar.dump(batch, 4))
    message = refusal(folder)
    assert message.startswith(f"{folder / 'data_batch_1'}: ")
    assert reason in message


def test_a_missing_or_cut_pickle_is_named(tmp_path: Path):
    folder = cifar.write_python(tmp_path / "py", cifar.make_up())
    path = folder / "data_batch_5"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    assert refusal(folder).startswith(f"{path}: not a whole and harmless CIFAR-10 pickle of {len(content) - 100} bytes")
    path.unlink()
    assert f"{path}: expected 30,720,000 bytes (10,000 images), found no such file" in refusal(folder)


# --- CIFAR-10: the real one --------------------------------------------------------------------------------

REAL = os.environ.get("WEIGHTCLASS_DATA")


@pytest.mark.skipif(not REAL, reason="WEIGHTCLASS_DATA does not say where the real CIFAR-10 lies")
def test_the_real_set_is_what_everybody_knows():
    train, test = sources.cifar10(REAL or "")
    assert (train.images.shape, test.images.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert train.classes == test.classes == sources.CLASSES
    mean, std = train.mean_std()
    assert mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)
    assert std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)
