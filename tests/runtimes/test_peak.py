"""The memory of a file is measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from weightclass.runtimes import peak
from weightclass.runtimes.runner import Runner

TELLS = peak.peak() is not None


class Hungry(Runner):
    """Keeps 40 MB an image that it is shown."""

    header, image_shape, classes = {}, (3, 8, 8), 10

    def __init__(self, raw: bool = True) -> None:
        self.raw, self.kept, self.seen = raw, [], []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.seen.append((images.shape, images.dtype))
        self.kept.append(np.ones(5 * 2**20))
        return np.zeros((len(images), 10), np.float32)


@pytest.mark.skipif(not TELLS, reason="this system does not tell a process's peak")
def test_the_peak_rises_and_does_not_fall() -> None:
    before = peak.peak()
    block = np.ones(32 * 2**20)
    held = peak.peak()
    del block
    assert before
    assert held
    assert held >= max(0.99 * before, 256 * 2**20)  # Linux counts in batches, a few pages off
    assert (peak.peak() or 0) >= 0.99 * held


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shape", [(), (1, 4, 4)])
def test_it_shows_three_images_on_one_thread(
    raw: bool, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hungry = Hungry(raw)
    monkeypatch.setattr(peak, "LIBRARIES", {"onnx": "json"})
    monkeypatch.setattr(peak, "runner", lambda path, threads: hungry if threads == 1 else None)
    peak.main(Path("some.ONNX"), *shape)
    told = json.loads(capsys.readouterr().out)
    assert hungry.seen == [((1, *(shape or (3, 8, 8))), np.uint8 if raw else np.float32)] * 3
    assert told is None or 0 < told[0] <= told[1]


def test_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peak, "LIBRARIES", {"onnx": "json"})
    monkeypatch.setattr(peak, "runner", lambda path, threads: Hungry())
    monkeypatch.setattr(peak, "peak", lambda: None)
    peak.main(Path("some.onnx"))
    assert json.loads(capsys.readouterr().out) is None


@pytest.mark.skipif(not TELLS, reason="this system does not tell a process's peak")
def test_a_real_file_in_a_process_of_its_own(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path, helper = tmp_path / "net.onnx", onnx.helper
    image, logits = (
        helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", ["n", 3, 8, 8]), ("y", ["n", 192]))
    )
    graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "net", [image], [logits])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    kept = np.ones(64 * 2**20)  # a peak of this process, which is none of the other's
    command = [sys.executable, "-m", "weightclass.runtimes.peak", str(path), "3", "8", "8"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    imported, whole = json.loads(done.stdout)
    assert 5e6 < imported <= whole < min(400e6, kept.nbytes)
    assert done.stderr == ""
