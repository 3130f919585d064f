"""Both sets read to what their files hold, in either layout; every way of having them wrong is one line with a cure."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import tarfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference import cifar as made
from tests.reference import data as twin
from weightclass.data import cifar
from weightclass.data.cifar import CIFAR10, CIFAR100, Cifar, read, read_batch
from weightclass.data.dataset import Dataset
from weightclass.errors import UserError

SETS = (CIFAR10, CIFAR100)
BOTH = pytest.mark.parametrize("which", SETS, ids=lambda which: which.name)
LAYOUTS = pytest.mark.parametrize("write", [made.write_binary, made.write_python])
REAL = os.environ.get("WEIGHTCLASS_DATA")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data but what a test makes up, and no network."""
    monkeypatch.delenv("WEIGHTCLASS_DATA", raising=False)
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar, "PAGE", "http://127.0.0.1:9/")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


def make_up(which: Cifar, seed: int = 0) -> made.Parts:
    return made.make_up(seed=seed) if which is CIFAR10 else made.make_up100(seed=seed)


def official(which: Cifar, write: Callable[..., Path]) -> str:
    return which.folders[write is made.write_python]


def digests(sets: tuple[Dataset, Dataset]) -> tuple[str, str]:
    return sets[0].digest(), sets[1].digest()


def refusal(call: Callable[..., object], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# --- reading -----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("protocol", ["python2", 2, 4, 5])
def test_both_layouts_give_the_same_datasets(tmp_path: Path, which: Cifar, protocol: int | str):
    parts = make_up(which)
    binary = read(which, str(made.write_binary(tmp_path / "bin", parts)))
    python = read(which, str(made.write_python(tmp_path / "py", parts, protocol)))
    assert digests(binary) == digests(python)
    assert binary[0].classes == python[1].classes == which.names


@BOTH
def test_reading_equals_record_by_record(tmp_path: Path, which: Cifar):
    parts = {name: (pixels[:40], labels[:40]) for name, (pixels, labels) in make_up(which).items()}
    if which is CIFAR100:
        parts["test"] = tuple(part[:8] for part in parts["test"])  # five times as many to train on
    folder = made.write_binary(tmp_path / "bin", parts)
    *train, test = (twin.read_binary(folder / f"{name}.bin", which.label_bytes) for name in parts)
    for part, files in zip(read(which, str(folder)), (train, [test]), strict=True):
        assert part.labels.tolist() == list(chain.from_iterable(labels for labels, _ in files))
        assert part.images.flatten(1).tolist() == list(chain.from_iterable(rows for _, rows in files))
        assert part.image_shape == (3, 32, 32)
        assert part.images.is_contiguous()


def test_the_well_known_names_are_in_the_order_of_the_alphabet():
    for which, count in ((CIFAR10, 10), (CIFAR100, 100)):
        assert which.classes == len(set(which.names)) == count
        assert list(which.names) == sorted(which.names)
    assert [CIFAR100.names[label] for label in (0, 1, 23, 58, 83, 99)] == [
        *("apple", "aquarium_fish", "cloud", "pickup_truck", "sweet_pepper", "worm")
    ]


# --- finding -----------------------------------------------------------------------------------------------


@BOTH
@LAYOUTS
@pytest.mark.parametrize("parent", [False, True])
def test_found_through_path_variable_or_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: Cifar, write: Callable, parent: bool
):
    folder = write(tmp_path / "cache" / official(which, write), make_up(which))
    where = folder.parent if parent else folder
    (tmp_path / "cache" / "test").touch()  # a stray file with the name of one of CIFAR-100's
    by_path, by_cache = read(which, str(where)), read(which)
    monkeypatch.setenv("WEIGHTCLASS_DATA", str(where))
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "empty"))
    assert digests(by_path) == digests(read(which)) == digests(by_cache)


@BOTH
def test_path_comes_before_variable_before_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: Cifar):
    folders = [tmp_path / "path", tmp_path / "variable", tmp_path / "cache" / which.folders[0]]
    own = []
    for seed, folder in enumerate(folders):
        made.write_binary(folder, make_up(which, seed))
        own.append(digests(read(which, str(folder))))
    assert len(set(own)) == 3
    assert digests(read(which)) == own[2]
    monkeypatch.setenv("WEIGHTCLASS_DATA", str(folders[1]))
    assert digests(read(which)) == own[1]
    assert digests(read(which, str(folders[0]))) == own[0]


@BOTH
@pytest.mark.parametrize("key", ["data.path", "WEIGHTCLASS_DATA"])
@pytest.mark.parametrize("kind", ["absent", "empty", "~nobody-of-that-name/data", "nul\0"])
def test_a_place_without_data_is_refused_by_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: Cifar, key: str, kind: str
):
    where = kind if kind.startswith("~") else str(tmp_path / kind)
    if kind == "empty":
        Path(where).mkdir()
    if key == "WEIGHTCLASS_DATA":
        where = where.replace("\0", "")  # no variable can hold one
        monkeypatch.setenv(key, where)
    message = refusal(read, which, where if key == "data.path" else "")
    first = "data_batch_1" if which is CIFAR10 else "train"
    assert message.startswith(f"{key} = {where}: there is no {first}.bin or {first} in it or its folder")
    assert message.endswith(f": {which.cure}")
    assert ("unset WEIGHTCLASS_DATA" in message) == (key == "WEIGHTCLASS_DATA")


@BOTH
@LAYOUTS
@pytest.mark.parametrize("kind", ["folder", "parent", "archive"])
def test_the_other_set_is_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: Cifar, write: Callable, kind: str
):
    other = CIFAR100 if which is CIFAR10 else CIFAR10
    folder = write(tmp_path / "data" / official(other, write), make_up(other))
    where = {"folder": folder, "parent": folder.parent, "archive": folder.parent / other.archive}[kind]
    if kind == "archive":
        where.touch()
    assert refusal(read, which, str(where)).startswith(
        f"data.path = {where}: holds {other.name}, not {which.name}: set data.path"
    )
    monkeypatch.setenv("WEIGHTCLASS_DATA", str(where))
    lacking = f"{tmp_path / 'cache'} lacks it too (unset WEIGHTCLASS_DATA to download it)"
    assert refusal(read, which) == (
        f"WEIGHTCLASS_DATA = {where}: holds {other.name}, not {which.name}, and {lacking}: {which.cure}"
    )
    made.write_binary(tmp_path / "cache" / which.folders[0], make_up(which))
    assert digests(read(which)) == digests(read(which, str(tmp_path / "cache")))


def test_one_place_may_hold_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WEIGHTCLASS_DATA", str(tmp_path / "data"))
    for which in SETS:
        made.write_python(tmp_path / "data" / which.folders[1], make_up(which))
    assert [len(read(which)[0].classes) for which in SETS] == [10, 100]


# --- the archive -------------------------------------------------------------------------------------------


@pytest.fixture(params=SETS, ids=lambda which: which.name)
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Cifar, Path]:
    """A made-up archive and the set whose official one it passes for."""
    which: Cifar = request.param
    folder = made.write_binary(tmp_path / "packed" / which.folders[0], make_up(which))
    path = tmp_path / "downloads" / which.archive
    path.parent.mkdir()
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.add(folder, folder.name)
    return dataclasses.replace(which, sha256=hashlib.sha256(path.read_bytes()).hexdigest()), path


@pytest.mark.parametrize("key", ["data.path", "WEIGHTCLASS_DATA"])
def test_an_archive_is_checked_and_unpacked_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: tuple[Cifar, Path], key: str
):
    which, archive = packed
    expected = digests(read(which, str(tmp_path / "packed")))
    path = str(archive) if key == "data.path" else ""
    with monkeypatch.context() as patch:
        if not path:
            patch.setenv(key, str(archive))
        assert digests(read(which, path)) == expected
        names = {path.name for path in (tmp_path / "cache" / which.folders[0]).iterdir()}
        assert names == {f"{name}.bin" for name, _ in which.files}
        archive.write_bytes(archive.read_bytes()[:-1])
        message = refusal(read, which, path)
        assert message.startswith(f"{archive}: its sha256 is ")
        assert f"{key} takes only the whole {which.archive}" in message
    assert digests(read(which)) == expected


def test_an_archive_put_in_the_cache_needs_no_network(tmp_path: Path, packed: tuple[Cifar, Path]):
    which, archive = packed
    expected = digests(read(which, str(tmp_path / "packed")))
    (tmp_path / "cache").mkdir()
    archive.rename(tmp_path / "cache" / archive.name)
    assert digests(read(which)) == expected


def test_a_cut_archive_with_the_right_hash_leaves_nothing(tmp_path: Path, packed: tuple[Cifar, Path]):
    which, archive = packed
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    which = dataclasses.replace(which, sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    message = refusal(read, which, str(archive))
    assert message.startswith(f"{archive}: not a whole archive of {which.folders[0]} (")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] in ([], [".lock"])


@BOTH
def test_without_data_or_network_the_ways_out_are_named(tmp_path: Path, which: Cifar):
    message = refusal(read, which)
    assert message.startswith(f"cannot download http://127.0.0.1:9/{which.archive} (ConnectionError: ")
    assert which.cure in message
    assert message.endswith(f"or put the archive at {tmp_path / 'cache' / which.archive}")


def test_the_official_archives_have_whole_hashes():
    assert [len(bytes.fromhex(which.sha256)) for which in SETS] == [32, 32]


@BOTH
def test_a_cache_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: Cifar):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WEIGHTCLASS_CACHE", str(tmp_path / "file" / "cache"))
    assert refusal(read, which).startswith(f"{tmp_path / 'file'}")


# --- damage ------------------------------------------------------------------------------------------------

ODD = [
    (CIFAR10, None, "no such file"),
    (CIFAR10, 0, "nothing"),
    (CIFAR10, 3072, "3,072 bytes, no whole records of 3,073"),
    (CIFAR10, 20 * 3073 - 1, "61,459 bytes, no whole records of 3,073"),
    (CIFAR10, 10 * 3073, "10 images"),
    (CIFAR100, None, "no such file"),
    (CIFAR100, 0, "nothing"),
    (CIFAR100, 3073, "3,073 bytes, no whole records of 3,074"),
    (CIFAR100, 100 * 3074, "100 images"),
]


@pytest.mark.parametrize(("which", "size", "found"), ODD)
def test_a_binary_file_of_the_wrong_size_is_named(tmp_path: Path, which: Cifar, size: int | None, found: str):
    folder = made.write_binary(tmp_path / "bin", make_up(which))
    path = folder / f"{which.files[0][0]}.bin"
    content = path.read_bytes()
    path.unlink()
    if size is not None:
        path.write_bytes(content[:size])
    expected = "30,730,000 bytes (10,000 images)" if which is CIFAR10 else "153,700,000 bytes (50,000 images)"
    assert refusal(read, which, str(folder)) == f"{path}: expected {expected}, found {found}: {which.cure}"


@BOTH
def test_among_official_files_the_odd_one_is_named(tmp_path: Path, which: Cifar):
    parts = make_up(which)
    which = dataclasses.replace(which, files=tuple((name, len(parts[name][1])) for name in parts))
    folder = made.write_binary(tmp_path / "bin", parts)
    path, width = folder / f"{which.files[-1][0]}.bin", 3072 + which.label_bytes
    path.write_bytes(path.read_bytes()[: 10 * width])
    count = len(parts[path.stem][1])
    assert refusal(read, which, str(folder)).startswith(
        f"{path}: expected {count * width:,} bytes ({count} images), found 10 images: "
    )


@BOTH
@LAYOUTS
def test_a_label_out_of_range_is_named(tmp_path: Path, which: Cifar, write: Callable):
    parts = make_up(which)
    parts[which.files[-2][0]][1][7:9] = which.classes
    message = refusal(read, which, str(write(tmp_path / "set", parts)))
    assert f": image 7 has label {which.classes}, expected 0 to {which.classes - 1}" in message
    assert Path(message.split(": ")[0]).stem == which.files[-2][0]


DATA = np.zeros((20, 3072), np.uint8)


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ({"labels": [0] * 20}, "no 'data'"),
        ({"data": [0], "labels": [0]}, "no 'data'"),
        ({"data": DATA.astype(np.int32), "labels": [0] * 20}, "no 'data'"),
        ({"data": DATA[:, :-1], "labels": [0] * 20}, "no 'data'"),
        ({"data": DATA[0, 0].reshape(()), "labels": [0] * 20}, "no 'data'"),
        ({"data": DATA}, "no 'labels'"),
        ({"data": DATA, "labels": [0] * 19}, "no 'labels'"),
        ({"data": DATA, "labels": ["0"] * 20}, "no 'labels'"),
        ({"data": DATA, "labels": [2**64] * 20}, "no 'labels'"),
        ({"data": DATA, "fine_labels": [0] * 20}, "no 'labels'"),
        ({"data": DATA[:0], "labels": []}, "(10,000 images), found 0 images"),
        ({"data": DATA[:10], "labels": [0] * 10}, "expected 30,720,000 bytes (10,000 images), found 10 images"),
    ],
)
def test_a_pickle_that_is_no_batch_is_named(tmp_path: Path, batch: dict, reason: str):
    folder = made.write_python(tmp_path / "py", made.make_up())
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch))
    message = refusal(read, CIFAR10, str(folder))
    assert message.startswith(f"{folder / 'data_batch_1'}: ")
    assert reason in message


@BOTH
def test_a_missing_or_cut_pickle_is_named(tmp_path: Path, which: Cifar):
    folder = made.write_python(tmp_path / "py", make_up(which))
    path = folder / which.files[-1][0]
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    assert refusal(read, which, str(folder)).startswith(
        f"{path}: not a whole and harmless CIFAR pickle of {len(content) - 100} bytes"
    )
    path.unlink()
    assert f"{path}: expected 30,720,000 bytes (10,000 images), found no such file" in refusal(read, which, str(folder))


# --- single batches ----------------------------------------------------------------------------------------

ROWS = np.random.default_rng(0).integers(0, 256, (6, 3072), np.uint8)
IMAGES = ROWS.reshape(6, 3, 32, 32)
COUNTED = [str(place) for place in range(6)]


def pickled(tmp_path: Path, batch: object, protocol: int = 4) -> Path:
    (tmp_path / "batch.pkl").write_bytes(pickle.dumps(batch, protocol))
    return tmp_path / "batch.pkl"


@pytest.mark.parametrize("label_bytes", [1, 2, 0])
def test_a_binary_batch_is_told_by_the_record_that_divides_it(tmp_path: Path, label_bytes: int):
    path = tmp_path / "test.BIN"
    np.column_stack([np.full((6, label_bytes), 9, np.uint8), ROWS]).tofile(path)
    images, ids = read_batch(path)
    assert images.tolist() == IMAGES.tolist()
    assert ids == COUNTED
    assert images.flags["C_CONTIGUOUS"] and images.flags["WRITEABLE"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("high", [False, True], ids=["rows", "HWC"])
@pytest.mark.parametrize("key", ["data", b"data"])
def test_a_pickled_batch_of_rows_or_of_pictures(tmp_path: Path, protocol: int, high: bool, key: str | bytes):
    data = IMAGES.transpose(0, 2, 3, 1) if high else ROWS
    for stored in (data, np.ascontiguousarray(data), np.asfortranarray(data)):
        images, ids = read_batch(pickled(tmp_path, {key: stored, "labels": [None] * 3}, protocol))
        assert images.tolist() == IMAGES.tolist()
        assert ids == COUNTED
        assert images.flags["C_CONTIGUOUS"] and images.flags["WRITEABLE"]


@BOTH
def test_an_official_pickle_is_a_batch_too(tmp_path: Path, which: Cifar):
    parts = make_up(which)
    name = which.files[-1][0]
    images, ids = read_batch(made.write_python(tmp_path / "py", parts) / name)
    assert np.array_equal(images.reshape(-1, 3072), parts[name][0])
    assert ids == [f"{place}.png" for place in range(len(images))]


@pytest.mark.parametrize("key", ["ids", "filenames"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, 1, 2, 6, 5, 4], list("312654")),
        (np.arange(10, 16), [str(number) for number in range(10, 16)]),
        (list(np.arange(6, dtype=np.uint8)), COUNTED),
        ([b"a.png", "b.png", 3, "ä", "", "f"], ["a.png", "b.png", "3", "ä", "", "f"]),
    ],
)
def test_ids_are_texts_of_what_the_file_has(tmp_path: Path, key: str, values: Any, expected: list[str]):
    assert read_batch(pickled(tmp_path, {"data": ROWS, key: values}))[1] == expected


def test_ids_come_before_filenames(tmp_path: Path):
    batch = {"data": ROWS, "filenames": ["x"] * 6, "ids": [7] * 6}
    assert read_batch(pickled(tmp_path, batch))[1] == ["7"] * 6


@pytest.mark.parametrize(
    "values", [[1] * 5, [None] * 6, [1.5] * 6, 6, np.zeros((6, 2), int), [[1]] * 6, [10**5000] * 6]
)
def test_ids_that_are_not_one_an_image_are_refused(tmp_path: Path, values: Any):
    path = pickled(tmp_path, {"data": ROWS, "ids": values})
    assert refusal(read_batch, path).startswith(f"{path}: its 'ids' or 'filenames' are not one number or name for each")


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ({}, "holds no 'data' of uint8 rows of 3072 bytes"),
        ({"data": ROWS.astype(int)}, "holds no 'data'"),
        ({"data": IMAGES}, "holds no 'data'"),
        ({"data": ROWS[0]}, "holds no 'data'"),
        ({"data": ROWS[:0]}, "holds no images"),
        ([ROWS], "not a dict"),
        ({"data": os.system}, "which was not run"),
    ],
)
def test_a_pickle_that_holds_no_pictures_is_refused(tmp_path: Path, batch: object, reason: str):
    path = pickled(tmp_path, batch)
    message = refusal(read_batch, path)
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_a_file_that_is_no_batch_is_refused(tmp_path: Path):
    for name, content, reason in [
        ("a.bin", b"", "holds no images"),
        ("b.bin", bytes(5000), "5,000 bytes are no whole records of 3,073, 3,074 or 3,072 bytes"),
        ("c", b"", "not a whole and harmless CIFAR pickle of 0 bytes"),
        ("d.png", b"\x89PNG\r\n\x1a\n", "not a whole and harmless CIFAR pickle of 8 bytes"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert refusal(read_batch, tmp_path / name).startswith(f"{tmp_path / name}: {reason}")
    for absent in (tmp_path / "none", tmp_path / "none.bin", tmp_path, Path("nul\0"), Path("nul\0.bin")):
        assert refusal(read_batch, absent).endswith(": name a CIFAR batch, pickled or .bin")


# --- whatever the bytes ------------------------------------------------------------------------------------

SMALL = {"data": ROWS[:1], "labels": [3], "fine_labels": [70], "ids": [5]}
FILES = [made.dump(SMALL, protocol) for protocol in ("python2", 0, 2, 4, 5)]


@st.composite
def garbled(draw: st.DrawFn) -> bytes:
    """A pickled batch cut short, or with some bytes around its pixels changed."""
    content = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 3))):
        content[draw(st.integers(-200, 199))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.none() | st.integers(0, len(content)))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("garbled")


@given(garbled())
def test_a_garbled_pickle_is_read_or_refused_in_one_line(folder: Path, content: bytes):
    for name in ("train", "test"):
        (folder / name).write_bytes(content)
    for call in (lambda: read_batch(folder / "test"), lambda: read(CIFAR100, str(folder))):
        try:
            found = call()
        except UserError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 (either may happen)
        else:
            assert len(found[0]) == len(found[1]) >= 1


@given(st.integers(0, 4), st.integers(0, 3074))
def test_binary_files_of_any_length_are_read_or_refused_in_one_line(folder: Path, records: int, rest: int):
    folder, size = folder / "bin", records * 3074 + rest
    folder.mkdir(exist_ok=True)
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(bytes(size))
    if size and any(size % width == 0 for width in (3072, 3073, 3074)):
        assert len(read_batch(folder / "test.bin")[0]) >= 1
    else:
        refusal(read_batch, folder / "test.bin")
    assert refusal(read, CIFAR100, str(folder)).startswith(f"{folder / 'train.bin'}: expected 153,700,000 bytes")


# --- the real one ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL, reason="WEIGHTCLASS_DATA does not say where the real CIFAR-10 lies")
def test_the_real_set_is_what_everybody_knows():
    train, test = read(CIFAR10, REAL or "")
    assert (train.images.shape, test.images.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert train.classes == test.classes == CIFAR10.names
    mean, std = train.mean_std()
    assert mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)
    assert std == pytest.approx((0.2470, 0.2435, 0.2616), abs=1e-4)
