"""LiteRT files (.tflite), run by ai-edge-litert with XNNPACK: ours only, one image at a time, [1, H, W, C] inside.

LiteRT verifies a file's structure, but runs one whose weights are damaged (a quarter of files damaged at random) as if
nothing were wrong. So ours carry a seal, checked before LiteRT sees them: MARK, the SHA-256 of all else in the file,
and the header, together one metadata buffer named "weightclass".
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from weightclass.errors import UserError
from weightclass.files import atomic_write
from weightclass.runtimes.runner import Runner, cores, needs, packed

MARK = b"\0weightclass/1\0\xc7\xa5"
_DIGEST = 32  # bytes


class Opened(Runner):
    """A .tflite file of ours, opened. Raises UserError. Nothing stops LiteRT from naming XNNPACK on stderr."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        with needs("litert", f"running {path.name}"):
            from ai_edge_litert.interpreter import Interpreter
        content, start, end = _opened(path)
        try:
            self.header = json.loads(content[start:end])
            self.image_shape = tuple(json.loads(self.header["image_shape"]))
            self.classes = len(json.loads(self.header["classes"]))
            self._interpreter = Interpreter(model_content=content, num_threads=threads or cores())
            self._interpreter.allocate_tensors()
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: cannot be opened ({error!r}): export it anew") from None
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, C, H, W] to logits float32 [n, classes]."""
        logits = np.empty((len(images), self.classes), np.float32)
        for row, image in zip(logits, np.ascontiguousarray(images.transpose(0, 2, 3, 1)), strict=True):
            self._interpreter.set_tensor(self._input, image[None])
            self._interpreter.invoke()
            row[:] = self._interpreter.get_tensor(self._output)[0]
        return logits


def stamp(path: Path, header: dict[str, str]) -> None:
    """Write another header into a file of ours."""
    content, start, end = _opened(path)
    atomic_write(path, sealed(content[:start] + packed(header, end - start) + content[end:]))


def sealed(content: bytes) -> bytes:
    """`content`, which has MARK and a header in it, with the digest between them that makes it a file of ours."""
    before, after = content.split(MARK)
    return before + MARK + hashlib.sha256(before + after[_DIGEST:]).digest() + after[_DIGEST:]


def _opened(path: Path) -> tuple[bytes, int, int]:
    """A file of ours, and where its header starts and ends."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    if content[4:8] != b"TFL3":
        raise UserError(f"{path}: not a LiteRT file, or damaged: give a .tflite file that `weightclass export` wrote")
    if content.count(MARK) != 1:
        raise UserError(f"{path}: not exported by weightclass, or cut short: only our own .tflite files can be run")
    if sealed(content) != content:
        raise UserError(f"{path}: damaged: copy it or export it anew")
    start = content.index(MARK)
    end = start + int.from_bytes(content[start - 4 : start], "little")  # a flatbuffer's vector: its length comes first
    return content, start + len(MARK) + _DIGEST, end
