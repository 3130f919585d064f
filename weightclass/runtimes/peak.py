"""The memory that an exported file takes: `python -m weightclass.runtimes.peak FILE [C H W]`, a process of its own."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import numpy as np

from weightclass.runtimes.runner import SUFFIXES, runner

LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino", "executorch": "torch"}
LIBRARIES |= {"litert": "ai_edge_litert.interpreter"}


def peak() -> int | None:
    """Peak resident bytes of this process; None where the system does not tell."""
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")  # Linux's ru_maxrss begins at that of the process that started this one
    told = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8")) if status.exists() else None
    return 1024 * int(told[1]) if told else None


def main(path: Path, *image_shape: int) -> None:
    """Print as JSON the peaks with the runtime imported, and after three single images on one thread."""
    name = SUFFIXES[path.suffix.lower()]
    for module in (LIBRARIES[name], f"weightclass.runtimes.{name}"):  # hashlib's OpenSSL is no file's share either
        import_module(module)
    imported, opened = peak(), runner(path, 1)
    for _ in range(3):
        opened(np.zeros((1, *(image_shape or opened.image_shape)), np.uint8 if opened.raw else np.float32))
    print(json.dumps(imported and [imported, peak()]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
