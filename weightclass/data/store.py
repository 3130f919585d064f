"""Images that stay in a raw file: a `Stored` answers for the file what a uint8 tensor [N, C, H, W] answers.

Only the rows that are asked for are read, through a memory map, so a set may be larger than memory.
"""

from __future__ import annotations

import copy
import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PIECE = 2**26
"""Bytes that are read at a time where the whole is looked through."""


class Stored:
    """The uint8 rows [N, C, H, W] of the raw file `path`, whose bytes have the SHA-256 `sha256`.

    Indexed with whatever indexes a tensor's first dimension, it gives an ordinary tensor, a copy in memory.
    """

    dtype, device = torch.uint8, torch.device("cpu")

    def __init__(self, path: Path, shape: tuple[int, int, int, int], sha256: str):
        # Read-only: Linux refuses to map a file privately and writable that is larger than memory and swap.
        self._pixels = np.memmap(path, np.uint8, "r", shape=shape).view(np.ndarray)
        self._rows = torch.arange(shape[0])
        self._sha256 = sha256

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self._pixels.shape[1:]))

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape)

    def __getitem__(self, index: Tensor | list[int] | slice) -> Tensor:
        return torch.from_numpy(self._pixels.take(self._rows[index].numpy(), axis=0))

    def select(self, indices: Tensor) -> Stored:
        """The rows at int64 `indices`, in that order, as a view: no pixel is read."""
        selected = copy.copy(self)
        selected._rows = self._rows[indices]
        return selected

    def digest(self) -> str:
        """SHA-256 (64 hex digits) of shape, pixels and selection, from the file's own hash: reads no pixel."""
        digest = hashlib.sha256(f"{self._sha256} {list(self._pixels.shape)}".encode())
        digest.update(self._rows.numpy().astype("<i8").data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Tensor:
        """All rows as one tensor on `device`, read piece by piece so that nothing is ever there twice."""
        whole = torch.empty(self.shape, dtype=self.dtype, device=device)
        count = max(1, PIECE // math.prod(self.shape[1:]))
        for start in range(0, len(self), count):
            whole[start : start + count] = self[start : start + count]
        return whole
