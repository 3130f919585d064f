"""Pickles of every age read alike; whatever else a pickle asks for is refused before it runs."""

from __future__ import annotations

import builtins
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference import cifar
from weightclass.data.pickles import load_dict
from weightclass.errors import UserError

BATCH = {"batch_label": "one", "labels": [3, 300, -1], "data": np.arange(12, dtype=np.uint8).reshape(3, 4)}


class Call:
    """Pickles to a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_dict(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5, "python2"])
def test_every_protocol_gives_the_same_dict(tmp_path: Path, protocol: int | str):
    path = tmp_path / "data_batch_1"
    path.write_bytes(cifar.dump(BATCH, protocol))
    found = load_dict(path)
    assert list(found) == list(BATCH)
    assert found["batch_label"] in ("one", b"one")
    assert found["labels"] == BATCH["labels"]
    assert found["data"].dtype == np.uint8
    assert np.array_equal(found["data"], BATCH["data"])


@pytest.mark.parametrize("protocol", [2, 5, "python2"])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i4", "<i8"])
def test_whole_numbers_of_any_width_order_and_layout(tmp_path: Path, protocol: int | str, dtype: str):
    array = np.array([[1, -2, 3], [4, 5, 127]]).astype(dtype)
    if protocol != "python2":
        array = np.asfortranarray(array)
    path = tmp_path / "batch"
    path.write_bytes(cifar.dump({"data": array}, protocol))
    assert np.array_equal(load_dict(path)["data"], array)


@pytest.mark.parametrize("protocol", range(6))
def test_a_transposed_array_keeps_its_axes(tmp_path: Path, protocol: int):
    """numpy 2.3 and later write one as its base and an order of axes in protocol 5, earlier ones as a copy."""
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2).transpose(0, 2, 3, 1)
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": array}, protocol))
    assert np.array_equal(load_dict(path)["data"], array)


def test_an_order_of_axes_is_followed_whoever_wrote_it(tmp_path: Path):
    """The bytes that numpy 2.4 writes, for tests beside an older numpy."""
    dtype = b"\x8c\x05numpy\x8c\x05dtype\x93\x8c\x02u1\x89\x88\x87R"
    dtype += b"(K\x03\x8c\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    base = b"\x96\x06" + bytes(7) + bytes(range(6))
    name = b"\x8c\x13numpy._core.numeric\x8c\x0b_frombuffer\x93"
    content = b"\x80\x05}\x8c\x04data" + name + b"(" + base + dtype + b"K\x02K\x03\x86\x8c\x01KK\x01K\x00\x86tRs."
    path = tmp_path / "batch"
    path.write_bytes(content)
    assert load_dict(path)["data"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_numpy_scalars_become_numbers(tmp_path: Path):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"labels": [np.int64(7), np.uint8(9)]}))
    assert load_dict(path) == {"labels": [7, 9]}


@pytest.mark.parametrize("protocol", range(6))
def test_a_system_call_is_named_and_never_runs(tmp_path: Path, protocol: int):
    marker = tmp_path / "ran"
    content = pickle.dumps({"data": Call(os.system, f"touch {marker}")}, protocol)
    message = refusal(tmp_path / "data_batch_1", content)
    assert f"{os.name}.system" in message
    assert not marker.exists()
    pickle.loads(content)  # the same bytes do run where nobody looks
    assert marker.exists()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(builtins.eval, ("1",)), (np.load, ("x",)), (getattr, (1, "real")), (np.zeros, (3,)), (bytearray, (b"x",))],
)
def test_no_other_name_is_let_through(tmp_path: Path, function: Any, arguments: tuple):
    message = refusal(tmp_path / "batch", pickle.dumps({"data": Call(function, *arguments)}, 2))
    assert f".{function.__name__}, which was not run" in message


@pytest.mark.parametrize("name", [b"numpy\nndarray.__reduce__", b"numpy\ndtype.__class__", b"_codecs\ndecode"])
def test_no_way_leads_through_an_allowed_name(tmp_path: Path, name: bytes):
    assert "which was not run" in refusal(tmp_path / "batch", b"\x80\x04}(X\x04\x00\x00\x00datac" + name + b"\nu.")


def test_only_latin1_is_encoded(tmp_path: Path):
    refusal(
        tmp_path / "batch",
        b"\x80\x02}(X\x01\x00\x00\x00ac_codecs\nencode\nX\x01\x00\x00\x00bX\x03\x00\x00\x00hex\x86Ru.",
    )


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(
    ("array", "code"),
    [(np.array([None, 1]), "O8"), (np.zeros(2, "f4,O"), "V12"), (np.zeros(2, "M8[s]"), "M8"), (np.zeros(2), "f8")],
)
def test_arrays_of_anything_but_whole_numbers_are_refused(tmp_path: Path, array: np.ndarray, code: str, protocol: int):
    assert f"array of type {code!r}" in refusal(tmp_path / "batch", pickle.dumps({"data": array}, protocol))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_cut_anywhere_is_one_line(tmp_path: Path, protocol: int):
    whole = cifar.dump(BATCH, protocol)
    for length in range(len(whole)):
        assert f"of {length} bytes" in refusal(tmp_path / "batch", whole[:length])


@pytest.mark.parametrize("opcode", [b"r\0\0\0\1", b"\x96\0\0\0\x10" + bytes(4)], ids=["memo", "length"])
def test_a_damaged_number_takes_no_memory(tmp_path: Path, opcode: bytes):
    """256 MB each to an unpickler that makes room before it reads; other numbers mean gigabytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusal(tmp_path / "batch", b"\x80\x05N" + opcode + b".")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 * 2 ** (20 if sys.platform == "darwin" else 10)


@pytest.mark.parametrize("value", [[1, 2], 3, "text", np.zeros(3, np.uint8)])
def test_what_is_no_dict_is_refused(tmp_path: Path, value: Any):
    assert "not a dict" in refusal(tmp_path / "batch", pickle.dumps(value))


def test_a_shape_that_the_bytes_do_not_fill_is_refused(tmp_path: Path):
    content = cifar.dump(BATCH).replace(b"J\x03\x00\x00\x00J\x04\x00\x00\x00t", b"J\x03\x00\x00\x00J\x00\x00\x00\x40t")
    assert content != cifar.dump(BATCH)
    assert "reshape" in refusal(tmp_path / "batch", content)
