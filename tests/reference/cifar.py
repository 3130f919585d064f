"""Writes small made-up CIFAR-10 folders in the official layouts, for tests that need one."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np

CLASSES = ("plane", "auto", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def make_up(per_file: int = 20, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """File name to (pixels uint8 [n, 3072], labels [n]), every class equally often where 10 divides `per_file`."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.integers(0, 256, (per_file, 3072), np.uint8), rng.permutation(np.arange(per_file) % 10))
        for name in FILES
    }


def write_binary(folder: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    folder.mkdir(parents=True)
    for name, (pixels, labels) in parts.items():
        np.column_stack([labels.astype(np.uint8), pixels]).tofile(folder / f"{name}.bin")
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n", encoding="utf-8")
    return folder


def write_python(
    folder: Path, parts: dict[str, tuple[np.ndarray, np.ndarray]], protocol: int | str = "python2"
) -> Path:
    """`protocol`: 0 to 5 as Python 3 writes them, or "python2" as the official files are."""
    folder.mkdir(parents=True)
    for name, (pixels, labels) in parts.items():
        batch = {"batch_label": name, "labels": labels.tolist(), "data": pixels, "filenames": ["a.png", "b.png"]}
        (folder / name).write_bytes(dump(batch, protocol))
    (folder / "batches.meta").write_bytes(dump({"label_names": list(CLASSES), "num_vis": 3072}, protocol))
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
