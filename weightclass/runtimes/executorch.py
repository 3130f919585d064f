"""ExecuTorch's .pte on a CPU: the program, then our header, then a hash of both."""

from __future__ import annotations

import json
from contextlib import redirect_stderr
from hashlib import sha256
from io import StringIO
from pathlib import Path

import numpy as np

from weightclass.errors import UserError
from weightclass.files import atomic_write
from weightclass.runtimes.runner import Runner, cores, needs


class Opened(Runner):
    """A file of ours; a foreign or damaged one could crash the process, for ExecuTorch trusts what it reads."""

    _resets = 0  # of the pool of threads, which is one for all

    def __init__(self, path: Path, threads: int = 0) -> None:
        with needs("executorch", "running .pte files"):
            import torch  # their runtime for Python stands on it; a device's does not

            # The core of executorch.runtime, which itself imports the compiler too: 3 s, 130 MB and warnings
            from executorch.extension.pybindings import _C
        self._tensor, self._core = torch.tensor, _C
        self._program, self.header = _read(path)
        self.image_shape = tuple(json.loads(self.header["image_shape"]))
        self.classes = len(json.loads(self.header["classes"]))
        self._threads = threads or cores()
        self._path = path
        self._load()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if (Opened._resets, self._core._threadpool_get_thread_count()) != (self._loaded_at, self._threads):
            self._load()
        logits = np.empty((len(images), self.classes), np.float32)
        pixels = self._tensor(np.ascontiguousarray(images))
        for row, image in zip(logits, pixels.split(1), strict=False):  # of no images, split makes one
            row[:] = self._method.call([image], clone_outputs=False)[0].numpy()
        return logits

    def _load(self) -> None:
        """Onto a pool of our own number of threads: what was loaded before a reset would use the old, freed one."""
        with redirect_stderr(StringIO()) as said:  # what they find out about the CPU, and what is wrong with a file
            try:
                if self._core._threadpool_get_thread_count() != self._threads:
                    self._core._unsafe_reset_threadpool(self._threads)
                    Opened._resets += 1
                self._loaded = self._core._load_program_from_buffer(self._program)  # which does not keep the bytes
                self._method, self._loaded_at = self._loaded.load_method("forward"), Opened._resets
            except RuntimeError as error:
                why = (said.getvalue().strip() or str(error)).split("\n")[-1]
                raise UserError(f"{self._path}: this executorch cannot run it, {why}: export it anew") from None


def stamp(path: Path, header: dict[str, str]) -> None:
    atomic_write(path, sealed(_read(path)[0], header))


def sealed(program: bytes, header: dict[str, str]) -> bytes:
    """A file of ours. ExecuTorch's loaders do not look behind the program."""
    text = json.dumps(header, sort_keys=True).encode()
    whole = program + text + len(text).to_bytes(8, "little")
    return whole + sha256(whole).digest()


def _read(path: Path) -> tuple[bytes, dict[str, str]]:
    """Program and header. Raises UserError."""
    data = path.read_bytes()
    if sha256(data[:-32]).digest() != data[-32:]:
        raise UserError(f"{path}: not an ExecuTorch file that weightclass wrote, or damaged since: export it anew")
    start = len(data) - 40 - int.from_bytes(data[-40:-32], "little")
    return data[:start], json.loads(data[start:-40])
