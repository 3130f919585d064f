"""A .pte is taken whole or not at all, its header comes back, and threads are as each runner was told."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.edge.test_shipped import MEAN, SHAPE, STD, lived_in, pixels
from weightclass.edge.executorch import write
from weightclass.edge.shipped import Shipped
from weightclass.errors import UserError
from weightclass.runtimes.executorch import Opened, sealed, stamp
from weightclass.runtimes.runner import runner

pytest.importorskip("executorch")
pytestmark = pytest.mark.slow  # importing what writes the file takes long

ODD = "a \"quoted\" 'name'\r\n\t é 漢 \x01 \ud800 \\n"
HEADER = {"image_shape": "[3, 8, 8]", "classes": json.dumps([ODD] * 10), "recipe": f"name = {ODD!r}\n[x]\n"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "ünet.v2.pte"
    write(Shipped(lived_in(), SHAPE, MEAN, STD), path, HEADER, "crop")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        runner(path, 1)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_what_is_opened(original: Path) -> None:
    opened = Opened(original, threads=1)
    assert (opened.header, opened.image_shape, opened.classes, opened.raw) == (HEADER, SHAPE, 10, True)


def test_earlier_answers_stay_and_the_layout_of_images_does_not_matter(original: Path) -> None:
    opened, images = Opened(original, threads=1), pixels(7).numpy()
    images.setflags(write=False)
    first = opened(images)
    before = first.copy()
    last_channel_first = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(opened(last_channel_first[::-1])[::-1], first)
    np.testing.assert_array_equal(first, before)


def test_runners_of_different_threads_take_turns(original: Path) -> None:
    runners, images = [Opened(original, threads) for threads in (1, 2, 1, 3)], pixels(2).numpy()
    expected = runners[0](images)
    for each in runners * 5:
        np.testing.assert_allclose(each(images), expected, rtol=0, atol=1e-5)
        assert each._core._threadpool_get_thread_count() == each._threads


def test_runners_of_as_many_threads_do_not_load_again(original: Path) -> None:
    one, other = Opened(original, 1), Opened(original, 1)
    methods = one._method, other._method
    one(pixels(1).numpy()), other(pixels(1).numpy()), one(pixels(1).numpy())
    assert (one._method, other._method) == methods


@settings(max_examples=20)
@given(header=st.dictionaries(st.text(), st.text()))
def test_a_stamped_header_comes_back_and_the_rest_stays(
    header: dict[str, str], original: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    header = {**header, "image_shape": "[3, 8, 8]", "classes": "[1, 2]"}
    path = tmp_path_factory.mktemp("stamped") / "net.pte"
    path.write_bytes(original.read_bytes())
    stamp(path, header)
    assert Opened(path, 1).header == header
    stamp(path, HEADER)
    assert path.read_bytes() == original.read_bytes()


def test_executorch_itself_reads_the_file_as_it_lies_there(original: Path) -> None:
    core = Opened(original, 1)._core
    program = core._load_program(str(original))
    assert [program.get_method_name(i) for i in range(program.num_methods())] == ["forward"]
    image = pixels(1)
    said = program.load_method("forward").call([image])[0].numpy()
    np.testing.assert_array_equal(said, Opened(original, 1)(image.numpy()))


@settings(max_examples=60)
@given(where=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_no_byte_may_change_and_none_be_missing(
    where: float, cut: bool, original: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(original.read_bytes())
    place = int(where * len(data))
    data[place] ^= 1
    path = tmp_path_factory.mktemp("damaged") / "net.pte"
    path.write_bytes(data[:place] if cut else data)
    assert "or damaged since" in refusal(path)


@pytest.mark.parametrize("data", [b"", b"ET12", bytes(40), b"<html>" * 100], ids=["empty", "short", "zeros", "other"])
def test_foreign_files(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pte").write_bytes(data)
    assert "not an ExecuTorch file that weightclass wrote" in refusal(tmp_path / "net.pte")


def test_a_program_that_others_wrote(original: Path, tmp_path: Path) -> None:
    (tmp_path / "net.pte").write_bytes(original.read_bytes()[:-500])
    assert "not an ExecuTorch file that weightclass wrote" in refusal(tmp_path / "net.pte")


def test_a_file_for_another_executorch(original: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = original.read_bytes()[: -len(sealed(b"", HEADER))]
    assert sealed(program, HEADER) == original.read_bytes()
    assert program[4:8] == b"ET12" and b"XnnpackBackend" in program
    for old, new, why in (
        (b"ET12", b"ET99", "Program identifier 'ET99' != expected 'ET12'"),
        (b"XnnpackBackend", b"XnnpackBackenX", "Backend XnnpackBackenX is not registered"),
    ):
        (tmp_path / "net.pte").write_bytes(sealed(program.replace(old, new), HEADER))
        assert why in refusal(tmp_path / "net.pte")
    assert capfd.readouterr() == ("", "")


def test_the_hash_is_of_all_before_it(original: Path) -> None:
    data = original.read_bytes()
    assert sha256(data[:-32]).digest() == data[-32:]


def test_executorch_is_not_installed(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch.extension.pybindings", None)
    with pytest.raises(UserError, match=r"pip install 'weightclass\[executorch\]'"):
        Opened(original)


def test_it_runs_without_the_compiler_and_quietly(original: Path) -> None:
    code = "import sys; from pathlib import Path; from weightclass.runtimes.runner import runner; import numpy; "
    code += "runner(Path(sys.argv[1]), 1)(numpy.zeros((2, 3, 8, 8), 'uint8')); "
    code += "print({'executorch.exir', 'torchao', 'onnx'} & set(sys.modules))"
    command = [sys.executable, "-W", "error", "-c", code, str(original)]
    told = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    assert (told.stdout, told.stderr) == ("set()\n", "")
