"""OpenVINO's pair on a CPU: NAME.xml, graph and header, and NAME.bin, the weights; the .xml ends in a hash of both."""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path
from unittest.mock import Mock
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import numpy as np

from weightclass.errors import UserError
from weightclass.files import atomic_write
from weightclass.runtimes.runner import Runner, needs

sys.modules.setdefault("openvino_telemetry", Mock())  # theirs writes to the home folder and calls a server, on import
# float32 even on a CPU with bfloat16; threads free to move: tied to a core, they share it with another process's
SETTINGS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}


class Opened(Runner):
    """A pair of ours; other .xml files do not say what their classes and pixels are."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        with needs("openvino", "running .xml files"):
            import openvino
        text, weights = _read(path)
        self.header = json.loads(next(ElementTree.fromstring(text).iter("weightclass")).attrib["value"])
        self.image_shape = tuple(json.loads(self.header["image_shape"]))
        self.classes = len(json.loads(self.header["classes"]))
        try:
            core = openvino.Core()
            settings = SETTINGS | {"INFERENCE_NUM_THREADS": threads}
            self._request = core.compile_model(core.read_model(text, weights), "CPU", settings).create_infer_request()
        except RuntimeError as error:
            why = str(error).strip().split("\n")[-1]
            raise UserError(f"{path}: OpenVINO {openvino.__version__} cannot run it: {why}") from None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if not len(images):  # OpenVINO would say what it said before
            return np.empty((0, self.classes), np.float32)
        return self._request.infer([images], share_inputs=True)[0]


def stamp(path: Path, header: dict[str, str]) -> None:
    text, weights = _read(path)
    atomic_write(path, written(text.rpartition(b"<rt_info>")[0], weights, header))


def written(graph: bytes, weights: bytes, header: dict[str, str]) -> bytes:
    """The .xml of `weights`: `graph`, which lacks its end, `header` as JSON in OpenVINO's rt_info, and the hash."""
    info = f"<weightclass value={quoteattr(json.dumps(header))}/>"  # ASCII without line ends, which XML would change
    return _sealed(graph + f"<rt_info>{info}</rt_info></net>".encode(), weights)


def _sealed(text: bytes, weights: bytes) -> bytes:
    return text + b"<!-- %b -->" % sha256(text + weights).hexdigest().encode()


def _read(path: Path) -> tuple[bytes, bytes]:
    try:
        text, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.filename} cannot be read: {error.strerror}") from None
    if text != _sealed(text.rpartition(b"<!-- ")[0], weights):
        raise UserError(f"{path}: not weightclass's, damaged, or beside another model's .bin: export both anew")
    return text, weights
