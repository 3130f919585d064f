"""Running .onnx files: our own headers, peers' files of every shape, and one clear line for all that is neither."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import parser

from weightclass.errors import UserError
from weightclass.runtimes.onnx import PIECE, SEAL, Opened, stamp

HEADER = {"format": "weightclass/1", "image_shape": "[3, 4, 4]", "classes": json.dumps(["a", "b", "c"])}
MEANS = "m = ReduceMean <keepdims = 0> (x, axes)"  # of each channel: three classes


def model(
    takes: str, body: str = MEANS, gives: str = "float[n, 3] m", consts: str = "int64[2] axes = {2, 3}"
) -> onnx.ModelProto:
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g ({takes}) => ({gives}) <{consts}> {{ {body} }}'
    )


def saved(path: Path, made: onnx.ModelProto, header: dict[str, str] | None = None) -> Path:
    onnx.helper.set_model_props(made, header or {})
    path.write_bytes(made.SerializeToString())
    return path


PIXELS = "f = Cast <to = 1> (x) m = ReduceMean <keepdims = 0> (f, axes)"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return saved(tmp_path / "ours.onnx", model("uint8[n, 3, H, W] x", PIXELS), HEADER)


def images(n: int, shape: tuple[int, ...] = (3, 4, 4)) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *shape)).astype(np.uint8)


def test_our_header_says_what_it_takes(ours: Path) -> None:
    opened = Opened(ours)
    assert (opened.header, opened.image_shape, opened.classes, opened.raw) == (HEADER, (3, 4, 4), 3, True)


@pytest.mark.parametrize("n", [0, 1, 7, PIECE + 1])
def test_any_number_of_images(ours: Path, n: int) -> None:
    said = Opened(ours, threads=1)(images(n))
    assert said.dtype == np.float32 and said.shape == (n, 3)
    np.testing.assert_allclose(said, images(n).mean((2, 3)), rtol=1e-6)


def test_a_stamp_replaces_the_header_and_nothing_else(ours: Path) -> None:
    other = HEADER | {"classes": '["x", "y", "z"]', "export": "new"}
    before = Opened(ours, 1)(images(3))
    stamp(ours, other)
    assert Opened(ours, 1).header == other
    np.testing.assert_array_equal(Opened(ours, 1)(images(3)), before)
    assert [each.name for each in ours.parent.iterdir()] == ["ours.onnx"]


# --- peers' files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("takes", "shape", "raw"),
    [
        ("float[n, 3, 4, 4] x", (3, 4, 4), False),
        ("float[2, 3, 4, 4] x", (3, 4, 4), False),  # a fixed batch
        ("float[n, 3, H, W] x", (3, 0, 0), False),
        ("float[n, c, h, w] x", (0, 0, 0), False),
        ("uint8[1, 3, 4, 4] x", (3, 4, 4), True),
    ],
)
def test_a_foreign_file_is_taken_as_it_is(takes: str, shape: tuple[int, int, int], raw: bool, tmp_path: Path) -> None:
    body = PIXELS if raw else MEANS
    opened = Opened(saved(tmp_path / "a.onnx", model(takes, body, "float[k, d] m"), {"format": "other"}), threads=1)
    assert (opened.header, opened.image_shape, opened.classes, opened.raw) == ({}, shape, 3, raw)
    for n in (0, 1, 2, 5):
        given = images(n) if raw else images(n).astype(np.float32)
        np.testing.assert_allclose(opened(given), images(n).mean((2, 3)).reshape(n, 3), rtol=1e-6)


def test_weights_beside_the_file(tmp_path: Path) -> None:
    made = model(
        "float[n, 3, 4, 4] x",
        f"{MEANS} y = Mul (m, w)",
        "float[n, 3] y",
        "int64[2] axes = {2, 3}, float[3] w = {1, 2, 3}",
    )
    onnx.save(
        made,
        tmp_path / "a.onnx",
        save_as_external_data=True,
        location="a.bin",
        size_threshold=12,
        convert_attribute=True,
    )
    assert Opened(tmp_path / "a.onnx")(np.ones((1, 3, 4, 4), np.float32)).tolist() == [[1, 2, 3]]


# --- one clear line ----------------------------------------------------------------------------------------


def refused(path: Path, saying: str = ".") -> str:
    with pytest.raises(UserError, match=saying) as caught:
        Opened(path, threads=1)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and "\n" not in line and len(line) < len(str(path)) + 260
    assert ".cc:" not in line and ".h:" not in line
    return line


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x08", bytes(1000), b"ORTM" + bytes(100)])
def test_not_onnx(content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    refused(tmp_path / "a.onnx", "onnxruntime cannot run it")
    assert capfd.readouterr() == ("", "")


def test_truncated_anywhere(ours: Path) -> None:
    content = ours.read_bytes()
    body = content.index(b"format")  # before the header begins
    for length in range(0, body - 4, 7):
        ours.write_bytes(content[:length])
        refused(ours)


def test_a_flipped_bit_of_a_stamped_file_is_refused(ours: Path) -> None:
    stamp(ours, HEADER)
    content = ours.read_bytes()
    for place in range(0, content.index(SEAL.encode()) - 4, 3):
        ours.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        refused(ours, "damaged")
    ours.write_bytes(content)
    assert Opened(ours, 1).header == HEADER


def test_a_name_that_is_no_text(ours: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ours.write_bytes(ours.read_bytes().replace(b"ReduceMean", b"Reduce\xffean"))
    refused(ours)
    assert capfd.readouterr() == ("", "")  # onnxruntime would tell that it tries again


@pytest.mark.parametrize(
    ("made", "saying"),
    [
        (model("float[n, 16] m", "y = Identity (m)", "float[n, 16] y"), "one input"),
        (model("double[n, 3, 4, 4] x"), "uint8 or float32|cannot run"),
        (model("float[n, 3, 4, 4] x, float[n, 3] z", f"{MEANS} y = Add (m, z)", "float[n, 3] y"), "one input"),
        (model("float[n, 4, 4, 3] x", MEANS), r"\[4, 4, 3\], not \[C, H, W\]"),
        (model("float[n, h, w, 3] x", MEANS), r"\[C, H, W\]"),
        (model("float[n, 3, 4, 4] x", "m = Identity (x)", "float[n, 3, 4, 4] m"), "first output is not"),
        (model("float[n, 3, 4, 4] x", "m = Shape (x)", "int64[4] m"), "first output is not"),
        (model("float[1, 3, 99999999, 99999999] x"), "."),  # more than there is memory
        (model("float[n, 3, 4, 4] x", "m = Konv (x)", "float[n, 3] m"), "Konv"),
        (model("float[n, 3, 4, 4] x", "one = Constant <value_ints = [7]> () m = Reshape (x, one)", "float[7] m"), "."),
    ],
)
def test_no_classifier_of_images(
    made: onnx.ModelProto, saying: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refused(saved(tmp_path / "a.onnx", made), saying)
    assert capfd.readouterr() == ("", "")


def test_an_opset_of_tomorrow(tmp_path: Path) -> None:
    made = model("float[n, 3, 4, 4] x")
    made.opset_import[0].version = 999
    refused(saved(tmp_path / "a.onnx", made), "999")


@pytest.mark.parametrize("place", ["gone.bin", "../secret.bin", "{absolute}"])
def test_weights_are_read_from_beside_the_file_alone(place: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(12))
    (tmp_path / "in").mkdir()
    made = model(
        "float[n, 3, 4, 4] x",
        f"{MEANS} y = Mul (m, w)",
        "float[n, 3] y",
        "int64[2] axes = {2, 3}, float[3] w = {1, 2, 3}",
    )
    (weight,) = [tensor for tensor in made.graph.initializer if tensor.name == "w"]
    del weight.float_data[:]
    weight.data_location = onnx.TensorProto.EXTERNAL
    place = place.format(absolute=tmp_path / "secret.bin")
    for name, value in {"location": place, "offset": "0", "length": "12"}.items():
        weight.external_data.add(key=name, value=value)
    refused(saved(tmp_path / "in" / "a.onnx", made))


@pytest.mark.parametrize(
    "damage", [{"image_shape": "[3, 4"}, {"image_shape": "[3, 4]"}, {"image_shape": "[3, null, 4]"}, {"classes": "7"}]
)
def test_a_damaged_header(ours: Path, damage: dict[str, str]) -> None:
    stamp(ours, HEADER | damage)
    refused(ours, "header is damaged")


def test_images_of_a_wrong_shape(tmp_path: Path) -> None:
    opened = Opened(saved(tmp_path / "a.onnx", model("float[n, 3, 4, 4] x")), threads=1)
    for wrong in (np.zeros((1, 3, 5, 4), np.float32), images(1)):
        with pytest.raises(UserError, match=r"a\.onnx: onnxruntime cannot run it"):
            opened(wrong)
