"""Reading CIFAR's python pickles without trusting them: no foreign code runs, numpy's included.

A pickle may call whatever it can name. Here the few names that arrays are pickled with lead to small
stand-ins that build them from plain bytes; every other name is refused before anything is called.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from weightclass.errors import UserError


def load_dict(path: Path) -> dict[str, Any]:
    """The dict in a pickle of any protocol, Python 2's too: str keys to integer arrays, bytes, text, lists, numbers.

    Raises:
        UserError: the pickle names anything else, holds an array of objects, is damaged, or is no dict.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    try:
        # Python 2's str comes as bytes; read as text, its 30 MB of pixels would first be decoded.
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError(f"it is a {type(found).__name__}, not a dict")
        return {as_text(key): value.array if isinstance(value, _Array) else value for key, value in found.items()}
    except Exception as error:  # damaged bytes can fail in any opcode, and so with any exception
        kind = "" if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__}: "
        reason = " ".join(f"{kind}{error}".split())
        raise UserError(
            f"{path}: not a whole and harmless CIFAR pickle of {len(content)} bytes ({reason}): fetch the file anew"
        ) from None


class _Unpickler(pickle._Unpickler):
    """Python's own: C's takes gigabytes for a damaged number before it fails, and saves 30 ms a file."""

    dispatch = pickle._Unpickler.dispatch.copy()
    dispatch[pickle.BYTEARRAY8[0]] = dispatch[pickle.BINBYTES8[0]]  # its own makes room before it reads

    def find_class(self, module: str, name: str) -> Any:
        # numpy 2 renamed numpy.core to numpy._core; Python 2 pickles carry the old name
        stand_in = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which was not run")
        return stand_in


class _DType:
    """Stands in for `numpy.dtype`: whole numbers of 1 to 8 bytes, so no objects."""

    def __init__(self, code: str | bytes, *_: Any):
        if not re.fullmatch("[iu][1248]", as_text(code)):
            raise pickle.UnpicklingError(f"it holds an array of type {as_text(code)!r}")
        self.dtype = np.dtype(as_text(code))

    def __setstate__(self, state: tuple) -> None:
        if as_text(state[1]) == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """Stands in for `numpy.ndarray`: made empty, filled when its state arrives."""

    array: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _from_buffer(raw: bytes, dtype: _DType, shape: tuple[int, ...], order: Any, axes: Any = None) -> _Array:
    array = _Array()  # protocol 5's way; `axes` are a transposed array's
    array.__setstate__((1, shape, dtype, order == "F", raw))
    array.array = array.array.transpose(axes) if axes else array.array
    return array


def _scalar(dtype: _DType, raw: bytes) -> int:
    return np.frombuffer(raw, dtype.dtype).item()


def _encode(text: str, codec: str) -> bytes:
    return text.encode({"latin1": "latin1"}[codec])  # how Python 3 writes bytes in protocols 0 to 2


def as_text(value: str | bytes) -> str:
    """Text as such; Python 2's str, which arrives as bytes, decoded."""
    return value.decode("latin1") if isinstance(value, bytes) else value


_STAND_INS = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
}
