"""Any picture reads as it is meant, and anything else is one line: no other exception, no warning."""

from __future__ import annotations

import io
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.reference.plain_images import UPRIGHT
from weightclass.data import images
from weightclass.data.fit import fitted
from weightclass.errors import UserError

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (12, 8, 3), np.uint8)
ORIENTATION = 0x0112


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


def planes(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)


def why_not(source: object) -> str:
    with pytest.raises(UserError) as caught:
        images.read(source, (3, 8, 8), "crop")
    return str(caught.value)


# --- modes -------------------------------------------------------------------------------------------------

GREY16 = (NOISE[..., 0].astype(np.uint16) << 8) + 77
RGB, GREY = Image.fromarray(NOISE), Image.fromarray(NOISE[..., 0])
ALPHA = Image.fromarray(np.array([[0, 255, 51]] * 12, np.uint8).repeat(3, 1)[:, :8])
CLEAR = RGB.copy()
CLEAR.putalpha(ALPHA)


def over_white(pixels: np.ndarray) -> np.ndarray:
    """`pixels` [H, W, 3] with the transparency of ALPHA laid on white, to whole levels."""
    alpha = np.asarray(ALPHA)[..., None] / 255
    return np.rint(pixels * alpha + 255 * (1 - alpha))


MODES = {
    "1": (GREY.convert("1"), np.asarray(GREY.convert("1"))[..., None] * np.uint8(255)),
    "L": (GREY, NOISE[..., :1]),
    "LA": (Image.merge("LA", (GREY, ALPHA)), over_white(NOISE[..., :1])),
    "P": (RGB.quantize(16), np.asarray(RGB.quantize(16).convert("RGB"))),
    "RGB": (RGB, NOISE),
    "RGBA": (CLEAR, over_white(NOISE)),
    "CMYK": (RGB.convert("CMYK"), NOISE),
    "YCbCr": (RGB.convert("YCbCr"), NOISE),
    "I;16": (Image.fromarray(GREY16), NOISE[..., :1]),
    "I": (Image.fromarray(GREY16.astype(np.int32)), NOISE[..., :1]),
    "F of 0 to 1": (Image.fromarray(np.float32(NOISE[..., 0]) / 255), NOISE[..., :1]),
    "F of 0 to 255": (Image.fromarray(np.float32(NOISE[..., 0])), NOISE[..., :1]),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_reads(mode: str):
    image, expected = MODES[mode]
    expected = np.broadcast_to(expected, NOISE.shape).astype(np.float64)
    found = images.read(encode(image, "TIFF"), (3, 12, 8), "crop")
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=3 if mode == "YCbCr" else 1)
    grey = images.read(image, (1, 12, 8), "crop")
    np.testing.assert_allclose(grey[0], expected @ [0.299, 0.587, 0.114], atol=3 if mode == "YCbCr" else 1)
    assert found.dtype == grey.dtype == np.uint8 and found.flags["C_CONTIGUOUS"] and found.flags["WRITEABLE"]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_a_transparent_colour_shows_white(mode: str):
    image = Image.new(mode, (8, 8), 0)
    image.paste(1 if mode in "1P" else 255 if mode == "L" else (9, 9, 9), (0, 0, 8, 4))
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 0, 0])
    found = images.read(encode(image, transparency=(0, 0, 0) if mode == "RGB" else 0), (3, 8, 8), "crop")
    assert (found[:, 4:] == 255).all()
    assert (
        mode not in ("RGB", "P")
        or (found[:, :4] == np.array([9, 9, 9] if mode == "RGB" else [200, 0, 0])[:, None, None]).all()
    )


def test_floats_that_are_no_numbers_are_black():
    values = np.array([[np.nan, -np.inf], [1e38, 3]], np.float32)
    assert images.read(Image.fromarray(values), (1, 2, 2), "crop").tolist() == [[[0, 0], [255, 3]]]


def test_only_the_first_frame_counts():
    frames = [Image.new("P", (8, 8), 0), Image.new("P", (8, 8), 1)]
    for frame in frames:
        frame.putpalette([10, 20, 30, 200, 200, 200])
    for kind in ("GIF", "PNG"):
        found = images.read(encode(frames[0], kind, save_all=True, append_images=frames[1:]), (3, 8, 8), "crop")
        assert found[:, 0, 0].tolist() == [10, 20, 30]


# --- orientation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_pictures_are_set_upright(kind: str, orientation: int, tmp_path: Path):
    path = tmp_path / "turned"
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    path.write_bytes(encode(RGB, kind, exif=exif(orientation), **options))
    stored = np.asarray(Image.open(path)) if kind == "JPEG" else NOISE
    upright = np.array(UPRIGHT[orientation](stored.tolist()), np.uint8)
    assert images.peek(path) == (*upright.shape[:2], True)
    np.testing.assert_array_equal(images.read(path, (3, *upright.shape[:2]), "crop"), upright.transpose(2, 0, 1))


def test_a_large_turned_jpeg_is_as_its_small_upright_self():
    ramp = np.linspace(0, 255, 900)[None, :, None].repeat(600, 0).repeat(3, 2).astype(np.uint8)
    found = images.read(encode(Image.fromarray(ramp), "JPEG", exif=exif(6)), (1, 30, 20), "crop")
    np.testing.assert_allclose(found[0], np.linspace(4, 251, 30)[:, None].repeat(20, 1), atol=3)


def test_a_large_jpeg_is_decoded_whole():
    content = encode(Image.fromarray(RNG.integers(0, 256, (600, 800, 3), np.uint8)), "JPEG")
    whole = encode(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(images.read(content, (3, 32, 32), "crop"), images.read(whole, (3, 32, 32), "crop"))


def test_damaged_exif_does_no_harm():
    found = images.read(encode(RGB, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01"), (3, 12, 8), "crop")
    np.testing.assert_array_equal(found, planes(RGB))


# --- fit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", [(8, 8), (24, 5)])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_a_picture_is_made_to_fit_upright(fit: images.Fit, goal: tuple[int, int]):
    content = encode(RGB, exif=exif(6))
    upright = torch.from_numpy(np.array(UPRIGHT[6](NOISE.tolist()), np.uint8)).permute(2, 0, 1)
    found = images.read(content, (3, *goal), fit)
    np.testing.assert_array_equal(found, fitted(upright, goal, fit))
    assert found.flags["C_CONTIGUOUS"] and found.flags["WRITEABLE"]


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_an_image_of_the_wanted_size_is_left_alone(fit: images.Fit, kind: str):
    content = encode(RGB, kind)
    np.testing.assert_array_equal(images.read(content, (3, 12, 8), fit), planes(Image.open(io.BytesIO(content))))


def test_a_pillow_image_is_not_touched():
    opened = Image.open(io.BytesIO(encode(Image.new("RGB", (800, 600)), "JPEG", exif=exif(6))))
    assert images.read(opened, (3, 8, 8), "crop").shape == (3, 8, 8)
    assert opened.size == (800, 600) and opened.getexif()[ORIENTATION] == 6


# --- what is broken ----------------------------------------------------------------------------------------

READABLE = {
    "jpg": ("JPEG", RGB, {"exif": exif(6)}),
    "progressive.jpg": ("JPEG", RGB, {"progressive": True}),
    "png": ("PNG", RGB, {"exif": exif(3)}),
    "palette.png": ("PNG", RGB.quantize(16), {"transparency": b"\0\x80"}),
    "deep.png": ("PNG", Image.fromarray(GREY16), {}),
    "bmp": ("BMP", RGB, {}),
    "gif": ("GIF", RGB.quantize(16), {"save_all": True, "append_images": [RGB.quantize(8)]}),
    "webp": ("WEBP", CLEAR, {}),
    "tif": ("TIFF", RGB, {"compression": "tiff_lzw"}),
    "float.tif": ("TIFF", GREY.convert("F"), {}),
    "ppm": ("PPM", RGB, {}),
    "pbm": ("PPM", GREY.convert("1"), {}),
    "jp2": ("JPEG2000", RGB, {}),
    "avif": ("AVIF", RGB, {}),
}


@cache
def whole(name: str) -> bytes:
    kind, image, options = READABLE[name]
    return encode(image, kind, **options)


@pytest.mark.parametrize("name", READABLE)
def test_every_format_reads(name: str, tmp_path: Path):
    path = tmp_path / f"picture.{name}"
    path.write_bytes(whole(name))
    assert images.listed(tmp_path) == [path]
    height, width, colour = images.peek(path)
    assert {height, width} == {12, 8} and colour == (READABLE[name][1].mode not in images.GREY)
    assert images.read(path, (3, 6, 6), "crop").std() > 5


def reads_or_tells(content: bytes) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            reason = f"image: {images.read(content, (3, 8, 8), 'crop').shape}"
        except UserError as error:
            reason = str(error)
    assert seen == [] and reason.startswith("image: ") and reason.isprintable() and len(reason) < 130


@given(
    st.binary(max_size=64),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"P6 ", b"II*\0"]),
)
def test_random_bytes_only_raise_user_errors(content: bytes, start: bytes):
    reads_or_tells(start + content)


@settings(max_examples=200)
@given(st.sampled_from(sorted(READABLE)), st.data())
def test_damaged_images_only_raise_user_errors(name: str, data: st.DataObject):
    content = bytearray(whole(name)[: data.draw(st.sampled_from([None, *range(0, len(whole(name)), 7)]))])
    place = st.one_of(st.integers(0, 100), st.integers(0, len(whole(name))))
    for at, byte in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=8)):
        content[at : at + 1] = bytes([byte])
    reads_or_tells(bytes(content))


@pytest.mark.parametrize("name", ["jpg", "png", "bmp", "ppm"])
def test_a_cut_file_is_truncated(name: str, tmp_path: Path):
    path = tmp_path / "cut"
    path.write_bytes(whole(name)[: -len(whole(name)) // 4])
    assert why_not(path) == f"{path}: truncated"


def test_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text\n.png").write_text("hello", encoding="utf-8")
    assert why_not(tmp_path / "empty.png") == f"{tmp_path / 'empty.png'}: empty file"
    assert why_not(tmp_path / "text\n.png") == f"{str(tmp_path / 'text')!r}: not an image".replace(
        "text", "text\\n.png"
    )
    assert why_not(tmp_path / "none.png").endswith("none.png: No such file or directory")
    assert why_not(encode(RGB, "EPS")) == "image: not an image"  # what would start Ghostscript
    assert why_not(Image.new("RGB", (0, 4))) == "image: no pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # 96 pixels: Pillow would only warn
    assert why_not(encode(RGB)) == why_not(RGB) == "image: too large: more than 60 pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert why_not(encode(RGB)) == "image: too large: more than 40 pixels"


# --- listing -----------------------------------------------------------------------------------------------


def test_listing_is_ordered_and_leaves_out_what_is_hidden(tmp_path: Path):
    wanted = ["B.PNG", "a/b/c.jpeg", "a/b.tif", "a-b/x.webp", "a.jpg"]
    for name in [*wanted, "a/notes.txt", ".hidden.jpg", ".git/x.jpg", "__MACOSX/x.jpg", "a/._b.tif", "jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in images.listed(tmp_path)] == sorted(wanted)


def test_listing_follows_links_once(tmp_path: Path):
    (tmp_path / "root" / "in").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.jpg").touch()
    try:
        (tmp_path / "root" / "in" / "loop").symlink_to(tmp_path / "root", target_is_directory=True)
        (tmp_path / "root" / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    except OSError:
        pytest.skip("this system lets nobody link")
    assert images.listed(tmp_path / "root") == [tmp_path / "root" / "link" / "x.jpg"]


def test_pictures_that_pillow_cannot_read_are_listed_and_named(tmp_path: Path):
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic and more")
    (tmp_path / "b.svg").write_text("<svg/>", encoding="utf-8")
    assert [path.name for path in images.listed(tmp_path)] == ["a.HEIC", "b.svg"]
    assert why_not(tmp_path / "a.HEIC").endswith("a HEIC picture or a film, which is not read: convert it to JPEG")
    assert why_not(tmp_path / "b.svg").endswith("not an image")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_upwards_is_not_followed(tmp_path: Path):
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    (tmp_path / "cats" / "loop").symlink_to("..")
    (tmp_path / "cats" / "elsewhere").symlink_to(tmp_path / "dogs")
    assert [path.relative_to(tmp_path).as_posix() for path in images.listed(tmp_path / "cats")] == [
        *("cats/0.png", "cats/elsewhere/0.png")
    ]


@pytest.mark.parametrize(
    ("name", "content", "is_one"),
    [
        ("a.jpg", b"", True),
        ("a.heic", b"", True),
        ("a.bin", b"\xff\xd8\xff\xe0", False),
        ("photo", b"\xff\xd8\xff\xe0", True),
        ("data_batch_1", b"\x80\x04\x95", False),
        ("notes.txt", b"hello", False),
        ("empty", b"", False),
    ],
)
def test_what_is_a_picture(tmp_path: Path, name: str, content: bytes, is_one: bool):
    (tmp_path / name).write_bytes(content)
    assert images.is_picture(tmp_path / name) is is_one
