"""What every runtime of an exported file has in common: pixels in, logits out, and the header that travels inside."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from weightclass.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".pte": "executorch", ".tflite": "litert"}
"""Of exported files, each with the module beside this one that runs it; also the extra that installs its library."""
SLACK = 4096  # bytes: a header is padded to a multiple, and may grow into the padding without moving what follows


class Runner:
    """An exported file, opened. `threads` = 0: as many as the process may use."""

    header: dict[str, str]
    """As in our model files (modelfile.py), and "export"; empty in a file that is not ours."""
    image_shape: tuple[int, int, int]
    """C, H, W of the images it takes; a foreign file's as its input says, 0 where it leaves a side open."""
    classes: int
    raw: bool = True
    """Takes uint8 pixels; a foreign file may take normalised float32 images instead."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (float32 where not `raw`) [n, C, H, W] to logits float32 [n, classes], whatever n."""
        raise NotImplementedError


def runner(path: Path, threads: int = 0) -> Runner:
    """`path` opened by the runtime of its suffix. Raises UserError: not installed, not such a file, damaged."""
    name = SUFFIXES[path.suffix.lower()]
    opened: Callable[[Path, int], Runner] = import_module(f"weightclass.runtimes.{name}").Opened
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return opened(path, threads)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stamp(path: Path, header: dict[str, str]) -> None:
    """Write another header into an exported file of ours; its weights stay as they are."""
    import_module(f"weightclass.runtimes.{SUFFIXES[path.suffix.lower()]}").stamp(path, header)


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Say what to install where an import inside fails: `with needs("onnx", "running .onnx files"): import ...`"""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{what} needs {error.name or error}: pip install 'weightclass[{extra}]'") from None


def packed(header: dict[str, str], room: int = 0) -> bytes:
    """JSON padded with spaces to `room` bytes, or to the next multiple of SLACK that leaves a quarter of one free."""
    text = json.dumps(header, sort_keys=True).encode()
    room = room or -(-(len(text) + SLACK // 4) // SLACK) * SLACK
    if len(text) > room:
        raise ValueError(f"a header of {len(text)} bytes does not fit into {room}")
    return text.ljust(room)
