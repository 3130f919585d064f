"""ONNX files, run by onnxruntime on the CPU: ours, and any other's that takes images and gives a logit a class."""

from __future__ import annotations

import json
import re
import textwrap
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from weightclass.errors import UserError
from weightclass.files import atomic_write
from weightclass.runtimes.runner import Runner, cores, needs

KINDS = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
SEAL = "weightclass.sha256"
"""The key in the metadata of the hash of all else, for protobuf takes flipped bits for weights."""
PIECE = 256  # images at once: what many more need between the layers does not fit into a small device


class Opened(Runner):
    """An .onnx file, opened: its graph is run, no library of operators is loaded. Raises UserError."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        with needs("onnx", "running .onnx files"):
            import onnxruntime
        self._path, options = path, onnxruntime.SessionOptions()
        if sealed(data := self._told(path.read_bytes)) != data:
            raise UserError(f"{path}: damaged or changed since it was exported: export it anew")
        del data  # before the runtime takes its own memory
        options.intra_op_num_threads, options.inter_op_num_threads = threads or cores(), 1
        options.log_severity_level = 4  # what goes wrong is raised, too
        how = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}  # which would print, and try the same again
        self._session = self._told(onnxruntime.InferenceSession, str(path), options, **how)
        inputs = [(each.name, each.type, each.shape) for each in self._session.get_inputs()]
        self._input, kind, shape = inputs[0] if len(inputs) == 1 else ("", "", ())
        if len(shape) != 4 or kind not in KINDS:
            raise UserError(f"{path}: no classifier of images: it has to take one input, [n, C, H, W] uint8 or float32")
        self._batch, *sides = [side if isinstance(side, int) else 0 for side in shape]
        self.raw, header = kind == "tensor(uint8)", self._session.get_modelmeta().custom_metadata_map
        header.pop(SEAL, None)
        self.header = header if header.get("format", "").startswith("weightclass/") else {}
        told = self.header or {"image_shape": json.dumps(sides), "classes": "[]"}
        try:
            channels, height, width = map(int, json.loads(told["image_shape"]))
            self.classes = len(json.loads(told["classes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: its header is damaged ({error!r}): export it anew") from None
        if channels not in (1, 3) and (channels or width in (1, 3)):
            raise UserError(f"{path}: takes images {sides}, not [C, H, W], grey or colour")
        self.image_shape = channels, height, width
        if not self.classes:  # a foreign file has as many as it answers
            black = self._told(np.zeros, (1, channels or 3, height or 224, width or 224), KINDS[kind])
            self.classes = self(black).shape[1]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        size = self._batch or PIECE
        said = [self._run(images[start : start + size]) for start in range(0, len(images), size)]
        return np.concatenate(said) if said else np.empty((0, self.classes), np.float32)

    def _run(self, piece: np.ndarray) -> np.ndarray:
        if short := max(self._batch - len(piece), 0):
            return self._run(np.concatenate((piece, np.repeat(piece[:1], short, 0))))[:-short]
        said = self._told(self._session.run, None, {self._input: piece})[0]
        if not isinstance(said, np.ndarray) or said.dtype.kind != "f" or said.shape[:-1] != (len(piece),):
            raise UserError(f"{self._path}: no classifier: its first output is not [n, classes] of floats")
        return said.astype(np.float32, copy=False)

    def _told(self, call: Any, *given: Any, **named: Any) -> Any:
        """The call's result; onnxruntime's refusals, of many kinds, in one line without the places in its source."""
        try:
            return call(*given, **named)
        except Exception as error:
            why = re.sub(r".*?(failed:|Error:? )|\S+\.(cc|h):\d+ (.*\) )?", "", " ".join(str(error).split()))
            raise UserError(f"{self._path}: onnxruntime cannot run it: {textwrap.shorten(why, 200)}") from None


def stamp(path: Path, header: dict[str, str]) -> None:
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, header | {SEAL: "0" * 64})
    atomic_write(path, sealed(model.SerializeToString()))


def sealed(data: bytes) -> bytes:
    """A file's bytes with the right hash where its metadata has a place for one; `data` where not."""
    before, mark, after = data.rpartition(b"\n\x12" + SEAL.encode() + b"\x12@")  # 18 letters of key, 64 of value
    return before + mark + sha256(before + after[64:]).hexdigest().encode() + after[64:] if mark else data
