"""A picture file of any common kind to uint8 [C, H, W], or one line that says why not.

Files are foreign: only the formats named here are opened (Pillow's EPS reader would start Ghostscript), a
decompression bomb is refused, and whatever a decoder raises ends as a `UserError`.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from weightclass.data.fit import Fit, fitted
from weightclass.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_FORMATS = {
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo",
    "PNG": ".png .apng",
    "BMP": ".bmp",
    "GIF": ".gif",
    "WEBP": ".webp",
    "TIFF": ".tif .tiff",
    "PPM": ".ppm .pgm .pbm .pnm .pfm",
    "JPEG2000": ".jp2 .j2k .jpf .jpx .j2c .jpc",
    "AVIF": ".avif",
}
SUFFIXES = frozenset(" ".join(_FORMATS.values()).split())
"""Of image files, in lower case; what a file really is, its content tells."""
FOREIGN = frozenset([".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".psd", ".jxl", ".svg"])
"""Pictures too, which Pillow does not read: listed all the same, so that they are named rather than forgotten."""
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")

GREY = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
"""Pillow's modes without colour."""


def hidden(name: str) -> bool:
    """Files and folders that nobody meant to be looked at: .git, ._photo.jpg, macOS's zip entrails."""
    return name.startswith(".") or name == "__MACOSX"


def shown(path: Path | str) -> str:
    """`path` for a message of one line, whatever bytes a file system lets a name have."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def is_picture(path: Path) -> bool:
    """By its name or, where that says nothing, its first bytes; a .bin is a batch whatever it begins with."""
    if (suffix := path.suffix.lower()) in SUFFIXES | FOREIGN or suffix == ".bin":
        return suffix != ".bin"
    try:
        with path.open("rb") as file:
            return file.read(4).startswith(_MAGIC)
    except OSError:
        return False


def listed(folder: Path) -> list[Path]:
    """Every image file below `folder`, by its name's ending, ordered by posix relative path: alike on every system.

    Links to folders are followed, but none upwards, and no folder is entered twice. Raises OSError where one cannot be
    listed.
    """
    start = Path(folder).resolve()
    found: list[tuple[str, Path]] = []
    entered: set[str] = set()
    for at, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(at)
        upwards = real != str(start) and start.is_relative_to(real)
        folders[:] = [] if real in entered or upwards else sorted(name for name in folders if not hidden(name))
        if real not in entered and not upwards:
            entered.add(real)
            above = Path(at).relative_to(folder).as_posix()
            wanted = (name for name in names if Path(name).suffix.lower() in SUFFIXES | FOREIGN and not hidden(name))
            found += [(name if above == "." else f"{above}/{name}", Path(at, name)) for name in wanted]
    return [path for _, path in sorted(found)]


def _refuse(error: OSError) -> None:
    raise error


# --- opening -----------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: Path | str | bytes | Picture) -> Iterator[Picture]:
    """The picture in `source`; every exception, the body's too, becomes a `UserError` "PATH: reason"."""
    from PIL import Image

    _hush()
    name = shown(source) if isinstance(source, Path | str) else "image"
    try:
        if isinstance(source, Image.Image):
            _check_size(source)
            yield source.copy()
            return
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            if not (head := file.read(12)):
                raise OSError(0, "empty file")
            if head[4:8] == b"ftyp" and head[8:12] not in (b"avif", b"avis"):
                raise OSError(0, "a HEIC picture or a film, which is not read: convert it to JPEG")
            with Image.open(file, formats=tuple(_FORMATS)) as image:
                _check_size(image)
                yield image
    except Exception as error:  # decoders fail with any exception: SyntaxError, struct.error, ZeroDivisionError ...
        raise UserError(f"{name}: {_reason(error)}") from None


def _hush() -> None:
    """Pillow's warnings and log never reach the user: bombs are refused here, and damaged EXIF does no harm.

    A filter that stays, for `catch_warnings` is not safe among threads.
    """
    hushed = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if hushed not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _check_size(image: Picture) -> None:
    from PIL import Image

    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Image.DecompressionBombError
    if not image.width * image.height:
        raise OSError(0, "no pixels")


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    text = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "truncated" in text.lower():
        return "truncated"
    return f"cannot be decoded ({textwrap.shorten(shown(text), 80, placeholder=' ...') or type(error).__name__})"


# --- reading -----------------------------------------------------------------------------------------------

_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM"}
_TURNS |= {5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
"""What sets a picture of each EXIF orientation upright, by Pillow's name; from 5 on, width and height change places."""


def peek(path: Path | str) -> tuple[int, int, bool]:
    """Height and width as set upright, and whether there is colour, from the header alone. Raises UserError."""
    with _opened(path) as image:
        width, height = image.size
        if _orientation(image) >= 5 and image.format != "TIFF":  # Pillow has turned a TIFF's size already
            width, height = height, width
        return height, width, image.mode not in GREY


def read(source: Path | str | bytes | Picture, image_shape: tuple[int, int, int], fit: Fit) -> np.ndarray:
    """uint8 [C, H, W]: the first frame, upright, grey (C = 1, luma) or RGB (C = 3), what is transparent over white.

    An image of H x W already comes out as it is; `fitted` makes others so. A large JPEG is decoded whole: decoded at a
    half or less (Pillow's `draft`), where clipping falls on means, it differs from what a browser decodes.
    Raises UserError "PATH: reason" ("image: reason" for bytes and Pillow images), whatever is wrong.
    """
    from PIL.Image import Transpose

    channels, height, width = image_shape
    with _opened(source) as image:
        image.load()
        if turn := _TURNS.get(_orientation(image)):
            image = image.transpose(Transpose[turn])
        pixels = np.array(_eight_bit(image, "L" if channels == 1 else "RGB")).reshape(*image.size[::-1], channels)
        return np.ascontiguousarray(fitted(torch.from_numpy(pixels).permute(2, 0, 1), (height, width), fit).numpy())


def _orientation(image: Picture) -> int:
    """EXIF's, 1 (upright) where there is none or it is damaged: the pixels may be whole."""
    from PIL import Image

    try:
        # not PngImageFile's, which would decode all pixels in search of a late one
        return int(Image.Image.getexif(image).get(Image.ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _eight_bit(image: Picture, mode: str) -> Picture:
    """In `mode` L or RGB. 16-bit grey loses its lower byte; floats run from 0 to 1, or to 255 where one is above 1."""
    from PIL import Image

    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image)).clip(0, 255)
        image = Image.fromarray(np.rint(values * (255 if values.max() <= 1 else 1)).astype(np.uint8))
    elif image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert(mode)
