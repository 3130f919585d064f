"""A folder of pictures is found in either layout, decoded once, and every mistake in it is one line."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from weightclass.data import folder, images
from weightclass.errors import UserError

ROOT = Path(__file__).parents[2]


@cache
def picture(seed: int = 0, size: tuple[int, int] = (8, 8), colour: bool = False) -> bytes:
    """A PNG of noise; `size` is height and width."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3) if colour else size, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def lay(root: Path, *names: str, content: bytes = b"") -> Path:
    """Write `content` or a picture of its own at each of `names`; a name that ends with / is an empty folder."""
    for seed, name in enumerate(names):
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content or picture(seed))
    return root


def names(files: folder.Files, root: Path) -> list[tuple[str, int]]:
    return [(path.relative_to(root).as_posix(), label) for path, label in files]


def problem(root: Path | str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        folder.find(str(root), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- layouts -----------------------------------------------------------------------------------------------


def test_class_folders(tmp_path: Path):
    lay(tmp_path, "b/2.png", "b/deep/er/1.png", "a/x.PNG", "Z/1.png", ".git/x.png", "__MACOSX/b/2.png", "a/note.txt")
    (tmp_path / "read.me").touch()
    found = folder.find(str(tmp_path))
    assert found.classes == ("Z", "a", "b") and found.image_shape == (1, 8, 8) and found.root == tmp_path
    assert list(found.splits) == ["train"]
    assert names(found.splits["train"], tmp_path) == [
        ("Z/1.png", 0),
        ("a/x.PNG", 1),
        ("b/2.png", 2),
        ("b/deep/er/1.png", 2),
    ]


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize(
    ("val", "test"), [("val", "TEST"), ("valid", "testing"), ("Validation", None), (None, "test"), (None, None)]
)
def test_split_folders(tmp_path: Path, train: str, val: str | None, test: str | None):
    lay(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", "papers/notes.txt")
    expected = {"train": [(f"{train}/a/1.png", 0), (f"{train}/b/2.png", 1)]}
    for split, name in (("validation", val), ("test", test)):
        if name:
            lay(tmp_path, f"{name}/b/1.png", f"{name}/a/")  # a class may have none there
            expected[split] = [(f"{name}/b/1.png", 1)]
    found = folder.find(str(tmp_path))
    assert found.classes == ("a", "b")
    assert {split: names(files, tmp_path) for split, files in found.splits.items()} == expected
    assert list(found.splits) == list(expected)


def test_a_class_may_be_called_train(tmp_path: Path):
    found = folder.find(str(lay(tmp_path, "train/1.png", "plane/1.png", "test/1.png")))
    assert found.classes == ("plane", "test", "train") and list(found.splits) == ["train"]


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ((), "{}: holds no class folders: expected"),
        (("1.png",), "{}: holds pictures, but no class folders: expected"),
        (("notes.txt",), "{}: holds no class folders: expected"),
        (("a/1.png",), "{}: holds only one class folder, a/: expected"),
        (("a/1.png", "b/", "b/x.txt"), "{}/b: no picture in it (.jpg, .png ...)"),
        (("test/a/1.png", "val/a/1.png"), "{}: train/ is missing beside test/: expected"),
        (("train/1.png", "test/a/1.png"), "{}/train: holds pictures, but no class folders"),
        (("train/a/1.png", "train/b/1.png", "test/"), "{}/test: no picture in any class of it"),
        (
            ("train/cat/1.png", "train/dog/1.png", "test/cats/1.png"),
            "{}/test/cats: train has no such class: did you mean cat?",
        ),
        (
            ("train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"),
            "{}: val/ and valid/ mean the same split: keep one",
        ),
        (
            ("train/a/1.png", "train/b/1.png", "vaild/a/1.png"),
            "{}/vaild: holds pictures beside train/, but is no split: did you mean valid?",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path: Path, there: tuple[str, ...], told: str):
    assert problem(lay(tmp_path, *there)).startswith(told.format(tmp_path))


def test_what_is_no_folder(tmp_path: Path):
    assert problem(tmp_path / "none").startswith(f"{tmp_path / 'none'}: no such folder")
    assert problem(lay(tmp_path, "1.png") / "1.png").startswith(f"{tmp_path / '1.png'}: a file, not a folder")
    assert problem("").startswith("data.path is empty")
    assert problem("~nobody-has-this-name/x")
    assert problem("x" * 5000)
    assert problem("a\0b")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_names_that_are_no_text(tmp_path: Path):
    try:
        lay(tmp_path, "a/1.png", "b/\udcff.png", "b/2\n.png")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    (tmp_path / "b" / "\udcff.png").write_bytes(b"x")
    done = folder.decode(folder.find(str(tmp_path)), "train", "crop", tmp_path / "cache")
    assert done.left_out == (r"'b/\udcff.png': not an image",)
    lay(tmp_path, "\udcfe/1.png")
    assert problem(tmp_path).startswith(ascii(str(tmp_path / "\udcfe")))


# --- shape -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "size", "side"),
    [
        ([(20, 30), (20, 30)], 0, (20, 30)),
        ([(5, 64), (5, 64)], 0, (5, 64)),
        ([(20, 65), (20, 65)], 0, (20, 20)),
        ([(100, 90), (100, 90)], 0, (64, 64)),
        ([(10, 30), (40, 20), (50, 60)], 0, (20, 20)),
        ([(4, 9), (5, 4)], 0, (8, 8)),
        ([(20, 30), (20, 30)], 32, (32, 32)),
    ],
)
def test_the_shape_follows_the_pictures(tmp_path: Path, sizes: list[tuple[int, int]], size: int, side: tuple[int, int]):
    for number, one in enumerate(sizes):
        lay(tmp_path, f"{'ab'[number % 2]}/{number}.png", content=picture(0, one))
    assert folder.find(str(tmp_path), size).image_shape == (1, *side)


def test_colour(tmp_path: Path):
    lay(tmp_path, "a/1.png", "b/1.png")
    assert [folder.find(str(tmp_path), 0, colour).image_shape[0] for colour in ("auto", "grey", "rgb")] == [1, 1, 3]
    (tmp_path / "b" / "2.png").write_bytes(picture(0, colour=True))
    assert [folder.find(str(tmp_path), 0, colour).image_shape[0] for colour in ("auto", "grey", "rgb")] == [3, 1, 3]


def test_the_sample_is_spread_and_skips_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lay(tmp_path, *(f"{name}/{number}.png" for name in "ab" for number in range(5)))
    for broken in ("a/0.png", "b/0.png"):
        (tmp_path / broken).write_bytes(b"broken")
    looked, peek = [], images.peek
    monkeypatch.setattr(images, "peek", lambda path: looked.append(path.relative_to(tmp_path).as_posix()) or peek(path))
    monkeypatch.setattr(folder, "SAMPLE", 4)
    assert folder.find(str(tmp_path)).image_shape == (1, 8, 8)
    assert looked == ["a/0.png", "a/3.png", "b/1.png", "b/4.png"]
    monkeypatch.setattr(folder, "SAMPLE", 2)
    assert problem(tmp_path) == f"none of 2 pictures can be read, first {tmp_path / 'a' / '0.png'}: not an image"


# --- decoding ----------------------------------------------------------------------------------------------


@pytest.fixture
def found(tmp_path: Path) -> folder.Found:
    lay(tmp_path / "set", *(f"train/{name}/{number}.png" for name in "ab" for number in range(35)), "test/b/1.png")
    return folder.find(str(tmp_path / "set"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry with every image that is decoded."""
    counted, read = [], images.read
    monkeypatch.setattr(images, "read", lambda *args: counted.append(1) or read(*args))
    return counted


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def failure(found: folder.Found, split: str, cache: Path) -> str:
    with pytest.raises(UserError) as caught:
        folder.decode(found, split, "crop", cache)
    assert kept(cache) == []
    return str(caught.value)


def test_images_come_in_order_with_their_labels(found: folder.Found, tmp_path: Path):
    ticks: list[tuple[int, int]] = []
    done = folder.decode(found, "train", "crop", tmp_path / "cache", lambda *now: ticks.append(now))
    expected = np.stack([images.read(path, (1, 8, 8), "crop") for path, _ in found.splits["train"]])
    np.testing.assert_array_equal(done.images.to("cpu").numpy(), expected)
    assert done.labels.tolist() == [0] * 35 + [1] * 35 and done.labels.dtype == torch.int64
    assert done.left_out == () and ticks == [(64, 70), (70, 70)]
    [name] = kept(tmp_path / "cache")
    assert name.startswith("set-train-") and len(name) == 26


def test_broken_files_are_left_out(found: folder.Found, tmp_path: Path):
    for name, content in (("a/3.png", picture()[:60]), ("b/7.png", b""), ("b/8.png", b"text")):
        (found.root / "train" / name).write_bytes(content)
    (found.root / "train" / "b" / "9.png").unlink()
    for _ in "twice":
        done = folder.decode(found, "train", "crop", tmp_path / "cache")
        reasons = ("truncated", "empty file", "not an image", "no such file")
        lines = [f"train/{name}.png: {why}" for name, why in zip(("a/3", "b/7", "b/8", "b/9"), reasons, strict=True)]
        assert list(done.left_out) == lines
        assert done.images.shape == (66, 1, 8, 8) and done.labels.tolist() == [0] * 34 + [1] * 32
    whole = [path for path, _ in found.splits["train"] if not any(path.match(f"{line[6:9]}.png") for line in lines)]
    expected = np.stack([images.read(path, (1, 8, 8), "crop") for path in whole])
    np.testing.assert_array_equal(done.images.to("cpu").numpy(), expected)


def test_a_class_or_a_split_without_an_image_is_an_error(found: folder.Found, tmp_path: Path):
    for path, _ in found.splits["test"] + found.splits["train"][:35]:
        path.write_bytes(b"broken")
    told = f"class 'a' of {found.root}: none of its 35 pictures can be read, first train/a/0.png: not an image"
    assert failure(found, "train", tmp_path / "cache") == told
    told = f"the test set of {found.root}: none of its 1 pictures can be read, first test/b/1.png: not an image"
    assert failure(found, "test", tmp_path / "cache") == told


def test_a_file_that_may_not_be_read_is_no_broken_picture(
    found: folder.Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, _ = found.splits["train"][3]
    read = Path.read_bytes

    def forbidden(self: Path) -> bytes:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", forbidden)  # chmod does not stop root
    assert failure(found, "train", tmp_path / "cache").startswith(f"{path}: Permission denied")


# --- the cache ---------------------------------------------------------------------------------------------


def test_a_kept_set_is_not_decoded_again(found: folder.Found, tmp_path: Path, reads: list[int]):
    first = folder.decode(found, "train", "crop", tmp_path / "cache")
    again = folder.decode(folder.find(str(found.root)), "train", "crop", tmp_path / "cache")
    assert len(reads) == 70
    assert again.images.digest() == first.images.digest() and torch.equal(again.labels, first.labels)


def touch(found: folder.Found) -> folder.Found:
    os.utime(found.splits["train"][5][0], ns=(1, 1))
    return found


def grow(found: folder.Found) -> folder.Found:
    lay(found.root, "train/a/new.png")
    return folder.find(str(found.root))


@pytest.mark.parametrize("change", [touch, grow, lambda found: folder.find(str(found.root), 10)])
def test_a_changed_set_is_decoded_anew(
    found: folder.Found, tmp_path: Path, reads: list[int], change: Callable[[folder.Found], folder.Found]
):
    folder.decode(found, "train", "crop", tmp_path / "cache")
    changed = change(found)
    folder.decode(changed, "train", "crop", tmp_path / "cache")
    assert len(reads) == 70 + len(changed.splits["train"])


def test_a_set_of_another_version_is_decoded_anew(
    found: folder.Found, tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
):
    first = folder.decode(found, "train", "crop", tmp_path / "cache").images.digest()
    monkeypatch.setattr(folder, "VERSION", folder.VERSION - 1)
    assert folder.decode(found, "train", "crop", tmp_path / "cache").images.digest() == first
    assert len(reads) == 140 and len(kept(tmp_path / "cache")) == 2


def test_fits_and_splits_are_kept_apart(found: folder.Found, tmp_path: Path):
    parts = [("train", "crop"), ("train", "pad"), ("test", "crop")]
    counts = [len(folder.decode(found, split, fit, tmp_path / "cache").labels) for split, fit in parts]
    assert counts == [70, 70, 1] and len(kept(tmp_path / "cache")) == 3


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", b'{"shape": [70, 1, 8, 8]}'])
@pytest.mark.parametrize("name", ["images.bin", "index.json"])
def test_a_damaged_set_is_decoded_anew(
    found: folder.Found, tmp_path: Path, reads: list[int], name: str, content: bytes | None
):
    first = folder.decode(found, "train", "crop", tmp_path / "cache").images.digest()
    [path] = (tmp_path / "cache").glob(f"*/{name}")
    path.unlink() if content is None else path.write_bytes(content)
    assert folder.decode(found, "train", "crop", tmp_path / "cache").images.digest() == first
    assert len(reads) == 140 and len(kept(tmp_path / "cache")) == 1


def test_two_at_once_decode_once(found: folder.Found, tmp_path: Path, reads: list[int]):
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(folder.decode, found, "train", "crop", tmp_path / "cache") for _ in range(2)]
    assert len({one.result().images.digest() for one in both}) == 1 and len(reads) == 70


def test_a_full_disk_is_one_line_and_leaves_nothing(
    found: folder.Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    told = failure(found, "train", tmp_path / "cache")
    assert told.startswith(f"{tmp_path / 'cache'}: cannot keep decoded pictures (No space left on device)")
    assert "WEIGHTCLASS_CACHE" in told


def test_a_cache_that_cannot_be_made_is_one_line(found: folder.Found, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="WEIGHTCLASS_CACHE"):
        folder.decode(found, "train", "crop", tmp_path / "file" / "cache")


KILLED = """
import os, signal, sys
from pathlib import Path
from weightclass.data import folder
found = folder.find(sys.argv[1])
folder.decode(found, "train", "crop", Path(sys.argv[2]), lambda *_: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_a_killed_decode_leaves_nothing_under_a_final_name(found: folder.Found, tmp_path: Path, reads: list[int]):
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, str(found.root), str(cache)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    [left] = kept(cache)
    assert left.startswith(".") and (cache / left / "set" / "images.bin").exists()
    done = folder.decode(found, "train", "crop", cache)
    assert len(reads) == len(done.labels) == 70
    [name] = kept(cache)
    assert name.startswith("set-train-")


def test_folders_whose_files_look_alike_share_nothing(tmp_path: Path):
    """As archives unpack them: the same names, sizes and times."""
    seen = []
    for number in (1, 2):
        root = tmp_path / str(number) / "pictures"
        for label in "ab":
            (root / label).mkdir(parents=True)
            Image.new("L", (8, 8), 90 * number).save(root / label / "0.bmp")
            os.utime(root / label / "0.bmp", (1, 1))
        seen.append(folder.decode(folder.find(str(root)), "train", "crop", tmp_path / "cache").images[:])
    assert [int(images.max()) for images in seen] == [90, 180]
