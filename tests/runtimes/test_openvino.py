"""A pair of OpenVINO files is taken whole or not at all, and its header comes back as it was written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.edge.test_shipped import MEAN, SHAPE, STD, lived_in, pixels
from weightclass.edge.openvino import write
from weightclass.edge.shipped import Shipped
from weightclass.errors import UserError
from weightclass.runtimes.openvino import Opened, stamp, written
from weightclass.runtimes.runner import runner

openvino = pytest.importorskip("openvino")

ODD = "a \"quoted\" 'name'\r\n\t<b> & </rt_info> <!-- ]]> é 漢 \x01 \ud800 \\n"
HEADER = {
    "image_shape": "[3, 8, 8]",
    "classes": json.dumps([ODD] * 10),
    "recipe": f"name = {ODD!r}\n[x]\n",
    "name": ODD,
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.xml"
    write(Shipped(lived_in(), SHAPE, MEAN, STD), path, HEADER, "crop")
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    return put(tmp_path / "ünet.v2.xml", original.read_bytes(), original.with_suffix(".bin").read_bytes())


def put(path: Path, text: bytes, weights: bytes) -> Path:
    path.write_bytes(text)
    path.with_suffix(".bin").write_bytes(weights)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        runner(path, 1)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_what_is_opened(path: Path) -> None:
    opened = Opened(path, threads=1)
    assert (opened.header, opened.image_shape, opened.classes, opened.raw) == (HEADER, SHAPE, 10, True)


def test_earlier_answers_stay_and_the_layout_of_images_does_not_matter(path: Path) -> None:
    opened, images = Opened(path, threads=1), pixels(7).numpy()
    first = opened(images)
    before = first.copy()
    last_channel_first = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(opened(last_channel_first[::-1])[::-1], first)
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_precision_are_as_told(threads: int, path: Path) -> None:
    compiled = Opened(path, threads)._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


@settings(max_examples=20)
@given(header=st.dictionaries(st.text(), st.text()))
def test_a_stamped_header_comes_back_and_the_rest_stays(
    header: dict[str, str], original: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    header = {**header, "image_shape": "[3, 8, 8]", "classes": "[1, 2]"}
    weights = original.with_suffix(".bin").read_bytes()
    path = put(tmp_path_factory.mktemp("stamped") / "net.xml", original.read_bytes(), weights)
    stamp(path, header)
    assert Opened(path, 1).header == header
    assert path.with_suffix(".bin").read_bytes() == weights
    stamp(path, HEADER)
    assert path.read_bytes() == original.read_bytes()


def test_openvino_reads_the_header_too(path: Path) -> None:
    said = openvino.Core().read_model(path).get_rt_info("weightclass").astype(str)
    assert json.loads(said) == HEADER


@settings(max_examples=60)
@given(suffix=st.sampled_from([".xml", ".bin"]), where=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_no_byte_may_change_and_none_be_missing(
    suffix: str, where: float, cut: bool, original: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "net.xml"
    put(path, original.read_bytes(), original.with_suffix(".bin").read_bytes())
    data = bytearray(path.with_suffix(suffix).read_bytes())
    place = int(where * len(data))
    data[place] ^= 1
    path.with_suffix(suffix).write_bytes(data[:place] if cut else data)
    assert "export both anew" in refusal(path)


@pytest.mark.parametrize("text", [b"", b"<net", b"<a/>", b"\xff\x00<!-- x -->"], ids=["empty", "cut", "other", "noise"])
def test_foreign_files(text: bytes, path: Path) -> None:
    path.write_bytes(text)
    assert "not weightclass's" in refusal(path)


def test_an_ir_that_others_wrote(path: Path) -> None:
    model = openvino.Core().read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())
    openvino.save_model(model, path)
    assert "not weightclass's" in refusal(path)


def test_the_weights_are_missing(path: Path) -> None:
    path.with_suffix(".bin").unlink()
    assert "ünet.v2.bin cannot be read" in refusal(path)


def test_a_file_from_a_later_openvino(path: Path) -> None:
    graph, weights = path.read_bytes().rpartition(b"<rt_info>")[0], path.with_suffix(".bin").read_bytes()
    put(path, written(graph.replace(b'type="ReLU"', b'type="ReLUX"'), weights, HEADER), weights)
    assert "cannot run it: Opset opset1 doesn't contain the operation with type: ReLUX" in refusal(path)


def test_openvino_is_not_installed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"pip install 'weightclass\[openvino\]'"):
        Opened(path)


def test_a_device_needs_no_torch(path: Path) -> None:
    code = "import sys; from pathlib import Path; from weightclass.runtimes.runner import runner; "
    code += "runner(Path(sys.argv[1]), 1); print({'torch', 'nncf', 'onnx'} & set(sys.modules))"
    command = [sys.executable, "-W", "error", "-c", code, str(path)]
    told = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    assert (told.stdout, told.stderr) == ("set()\n", "")
