"""A .tflite file of ours runs wherever ai-edge-litert does; any other is one clear line, and never reaches LiteRT.

golden/tiny.tflite was made, from a network of one seed, by

    model = recipe.load("quickstart", "model.blocks=1,1", "model.channels=4,8").recipe.model
    shipped = Shipped(networks.build(model, (3, 8, 8), 10, seed=3), (3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    litert.write(shipped, Path("tests/golden/tiny.tflite"), HEADER, "stretch")

and golden/tiny_tflite.json is `shipped(IMAGES)`, as PyTorch computes it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightclass.errors import UserError
from weightclass.runtimes import litert
from weightclass.runtimes.litert import MARK, Opened, sealed, stamp
from weightclass.runtimes.runner import runner

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'weightclass[litert]'")

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = (GOLDEN / "tiny.tflite").read_bytes()
LOGITS = np.array(json.loads((GOLDEN / "tiny_tflite.json").read_text(encoding="utf-8")), np.float32)
IMAGES = (np.arange(4 * 3 * 8 * 8) * 37 % 256).astype(np.uint8).reshape(4, 3, 8, 8)
HEADER = {
    "format": "weightclass/1",
    "image_shape": "[3, 8, 8]",
    "classes": json.dumps([f"class {label}" for label in range(10)]),
    "export": "{}",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.tflite"
    path.write_bytes(TINY)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        Opened(path, 1)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and "\n" not in said
    return said


def test_it_says_what_pytorch_said(file: Path) -> None:
    opened = runner(file, 1)
    assert (opened.header, opened.image_shape, opened.classes, opened.raw) == (HEADER, (3, 8, 8), 10, True)
    said = opened(IMAGES)
    assert said.dtype == np.float32
    np.testing.assert_allclose(said, LOGITS, atol=1e-5)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_images_are_taken_one_by_one_whatever_their_number_and_layout(file: Path, threads: int) -> None:
    opened = Opened(file, threads)
    assert opened(IMAGES[:0]).shape == (0, 10)
    assert np.array_equal(opened(IMAGES[2:3]), opened(IMAGES)[2:3])
    strided = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert np.array_equal(opened(strided[::-1]), opened(IMAGES)[::-1])


def test_a_stamp_changes_the_header_alone(file: Path) -> None:
    other = HEADER | {"facts": json.dumps({"accuracy": 0.9, "name": "für alle"})}
    stamp(file, other)
    opened = Opened(file, 1)
    assert opened.header == other
    np.testing.assert_allclose(opened(IMAGES), LOGITS, atol=1e-5)
    content = file.read_bytes()
    differs = np.flatnonzero(np.frombuffer(content, np.uint8) != np.frombuffer(TINY, np.uint8))
    start = TINY.index(MARK) + len(MARK)
    assert len(content) == len(TINY) and start <= differs.min() and differs.max() < start + 32 + 4096
    stamp(file, HEADER)
    assert file.read_bytes() == TINY
    with pytest.raises(ValueError, match="does not fit"):
        stamp(file, {"facts": "a" * 5000})
    assert file.read_bytes() == TINY


@given(place=st.integers(0, len(TINY) - 1), bit=st.integers(0, 7))
def test_no_changed_bit_reaches_litert(tmp_path_factory: pytest.TempPathFactory, place: int, bit: int) -> None:
    path = tmp_path_factory.mktemp("bit") / "a.tflite"
    content = bytearray(TINY)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    refusal(path)
    with pytest.raises(UserError):
        stamp(path, HEADER)
    assert path.read_bytes() == content


@given(length=st.integers(0, len(TINY) - 1))
def test_no_truncated_file_reaches_litert(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.tflite"
    path.write_bytes(TINY[:length])
    refusal(path)


def test_it_is_said_what_is_wrong(file: Path) -> None:
    assert "cannot be read: " in refusal(file.parent)
    file.write_bytes(b"")
    assert "not a LiteRT file, or damaged" in refusal(file)
    file.write_bytes(b"PK\3\4" * 100)
    assert "not a LiteRT file, or damaged" in refusal(file)
    file.write_bytes(TINY.replace(MARK, b"\0" * len(MARK)))  # as any other converter's
    assert "not exported by weightclass" in refusal(file)
    file.write_bytes(TINY + b"\0")
    assert "damaged: copy it or export it anew" in refusal(file)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"classes"', b'"glasses"'),
        (b'{"classes"', b'["classes"'),
        (b'"[3, 8, 8]"', b'"[3, 8, x]"'),
        (b'"[3, 8, 8]"', b'"3.14159  "'),
    ],
)
def test_a_sealed_header_that_makes_no_sense_is_one_line(file: Path, before: bytes, after: bytes) -> None:
    assert TINY.count(before) == 1 and len(before) == len(after)
    file.write_bytes(sealed(TINY.replace(before, after)))
    assert "cannot be opened" in refusal(file)


def test_an_operator_that_litert_does_not_have_is_one_line(file: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(TINY))
    assert model.operatorCodes
    model.operatorCodes[-1].version = 999
    file.write_bytes(sealed(bytes(flatbuffer_utils.convert_object_to_bytearray(model))))  # type: ignore[arg-type]
    assert "cannot be opened (" in refusal(file)
    assert schema.ModelT is type(model)


def test_a_device_needs_no_torch() -> None:
    code = "import sys, weightclass.runtimes.litert; print('torch' in sys.modules, 'ai_edge_litert' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["False", "False"]


def test_it_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(UserError, match=r"running tiny.tflite needs .*: pip install 'weightclass\[litert\]'"):
        litert.Opened(file)
