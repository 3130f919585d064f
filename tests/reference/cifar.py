"""Writes small made-up CIFAR-10 and CIFAR-100 folders in the official layouts, for tests that need one."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np

CLASSES = ("plane", "auto", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FINE = tuple(f"kind {number}" for number in range(100))
FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")

Parts = dict[str, tuple[np.ndarray, np.ndarray]]
"""File name to pixels uint8 [n, 3072] and labels [n]; CIFAR-100 is what has a file named train."""


def make_up(per_file: int = 20, seed: int = 0) -> Parts:
    """CIFAR-10, every class equally often in a file where 10 divides `per_file`."""
    return _make_up(dict.fromkeys(FILES, per_file), 10, seed)


def make_up100(test_images: int = 100, seed: int = 0) -> Parts:
    """CIFAR-100: five times as many to train on as to test on, as in the official one."""
    return _make_up({"train": 5 * test_images, "test": test_images}, 100, seed)


def _make_up(sizes: dict[str, int], classes: int, seed: int) -> Parts:
    rng = np.random.default_rng(seed)
    return {
        name: (rng.integers(0, 256, (size, 3072), np.uint8), rng.permutation(np.arange(size) % classes))
        for name, size in sizes.items()
    }


def write_binary(folder: Path, parts: Parts) -> Path:
    folder.mkdir(parents=True)
    fine = "train" in parts
    for name, (pixels, labels) in parts.items():
        before = [labels.astype(np.uint8) // 5, labels.astype(np.uint8)] if fine else [labels.astype(np.uint8)]
        np.column_stack([*before, pixels]).tofile(folder / f"{name}.bin")
    path, names = ("fine_label_names.txt", FINE) if fine else ("batches.meta.txt", CLASSES)
    (folder / path).write_text("\n".join(names) + "\n\n", encoding="utf-8")
    return folder


def write_python(folder: Path, parts: Parts, protocol: int | str = "python2") -> Path:
    """`protocol`: 0 to 5 as Python 3 writes them, or "python2" as the official files are."""
    folder.mkdir(parents=True)
    fine = "train" in parts
    for name, (pixels, labels) in parts.items():
        batch = {"batch_label": name, "data": pixels, "filenames": [f"{place}.png" for place in range(len(labels))]}
        batch |= {"coarse_labels": (labels // 5).tolist()} if fine else {}
        batch["fine_labels" if fine else "labels"] = labels.tolist()
        (folder / name).write_bytes(dump(batch, protocol))
    lists: dict = {"fine_label_names": list(FINE), "coarse_label_names": ["all"]} if fine else {"num_vis": 3072}
    lists |= {} if fine else {"label_names": list(CLASSES)}
    (folder / ("meta" if fine else "batches.meta")).write_bytes(dump(lists, protocol))
    return folder


def dump(value: object, protocol: int | str = "python2") -> bytes:
    if isinstance(protocol, int):
        return pickle.dumps(value, protocol)
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: object) -> bytes:
    """Protocol 2 opcodes of Python 2's cPickle, where text is `str`, that is bytes; memo entries left out."""
    if isinstance(value, str | bytes):
        raw = value.encode("latin1") if isinstance(value, str) else value
        return (b"U" + struct.pack("<B", len(raw)) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))) + raw
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_python2(key) + _python2(item) for key, item in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\n" + _python2(value.dtype.str[1:]) + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + _python2(value.dtype.str[0]) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(map(_python2, value.shape)) + b"t"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _python2(value.tobytes()) + b"tb"
