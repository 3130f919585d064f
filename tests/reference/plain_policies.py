"""The slow plain twin of the published policies and warps: one Pillow image at a time, all random numbers handed in.

Pixel for pixel what torchvision 0.29 does to Pillow images (transforms/autoaugment.py, functional.py,
_functional_pil.py), fill black; but for AugMix, which there has no Pillow path: see `augmix`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

Step = tuple[str, int, bool]
"""An operation, its magnitude's bin, and whether a signed magnitude is negative."""

RESAMPLING = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}

# --- operations --------------------------------------------------------------------------------------------


def apply_op(image: Image.Image, name: str, magnitude: float, interpolation: str = "nearest") -> Image.Image:
    """`image` (RGB or L) after one operation by torchvision's name, its strength in torchvision's units."""
    if name in ("ShearX", "ShearY", "TranslateX", "TranslateY"):
        matrix = affine_matrix(name, magnitude, *image.size)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, RESAMPLING[interpolation], fillcolor=0)
    if name == "Rotate":
        return image.rotate(magnitude, RESAMPLING[interpolation], fillcolor=0)
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return getattr(ImageEnhance, name)(image).enhance(1.0 + magnitude)
    return COLOURS[name](image, magnitude)


def posterize(image: Image.Image, bits: float) -> Image.Image:
    """No bits, as AugMix asks for at severity 9 and 10: black, as torchvision's tensors; Pillow 13 refuses."""
    return ImageOps.posterize(image, int(bits)) if int(bits) else Image.new(image.mode, image.size)


COLOURS: dict[str, Callable[[Image.Image, Any], Image.Image]] = {
    "Posterize": posterize,
    "Solarize": ImageOps.solarize,
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Identity": lambda image, _: image,
}


def affine_matrix(name: str, magnitude: float, width: int, height: int) -> list[float]:
    """Pillow's (a, b, c, d, e, f), from a place in the output to one in the input.

    A shear's centre is the corner (0, 0) and its magnitude the tangent of its angle, a translation counts whole
    pixels. The order of the arithmetic is that of `_get_inverse_affine_matrix`: float64, to the last bit.
    """
    angle = math.radians(math.degrees(math.atan(magnitude)))
    sx, sy = angle * (name == "ShearX"), angle * (name == "ShearY")
    tx, ty = int(magnitude) * (name == "TranslateX"), int(magnitude) * (name == "TranslateY")
    cx, cy = (width * 0.5, height * 0.5) if name.startswith("Translate") else (0, 0)
    a = math.cos(-sy) / math.cos(sy)
    b = -math.cos(-sy) * math.tan(sx) / math.cos(sy)
    c = math.sin(-sy) / math.cos(sy)
    d = -math.sin(-sy) * math.tan(sx) / math.cos(sy) + 1.0
    return [d, -b, d * (-cx - tx) - b * (-cy - ty) + cx, -c, a, -c * (-cx - tx) + a * (-cy - ty) + cy]


def crop(image: Image.Image, down: int, right: int, padding: int = 4) -> Image.Image:
    """RandomCrop of the image's own size: the window moved by `down`, `right` over the image in a black frame."""
    w, h = image.size
    top, left = padding + down, padding + right
    return ImageOps.expand(image, border=padding, fill=0).crop((left, top, left + w, top + h))


def flip(image: Image.Image) -> Image.Image:
    """Left to right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def perspective(image: Image.Image, endpoints: Sequence[Sequence[int]]) -> Image.Image:
    """RandomPerspective, bilinear: the corners, clockwise from the top left, moved to these four (x, y)."""
    coefficients = perspective_coefficients(*image.size, endpoints)
    return image.transform(image.size, Image.Transform.PERSPECTIVE, coefficients, RESAMPLING["bilinear"], fillcolor=0)


def perspective_coefficients(width: int, height: int, endpoints: Sequence[Sequence[int]]) -> list[float]:
    """The eight numbers a..h of output (x, y) -> input ((ax + by + c), (dx + ey + f)) / (gx + hy + 1), as float32."""
    startpoints = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    equations = torch.zeros(8, 8, dtype=torch.float64)
    for i, ((x, y), (u, v)) in enumerate(zip(endpoints, startpoints, strict=True)):
        equations[2 * i] = torch.tensor([x, y, 1, 0, 0, 0, -u * x, -u * y])
        equations[2 * i + 1] = torch.tensor([0, 0, 0, x, y, 1, -v * x, -v * y])
    places = torch.tensor(startpoints, dtype=torch.float64).view(8)
    return torch.linalg.lstsq(equations, places, driver="gels").solution.float().tolist()


# --- strengths ---------------------------------------------------------------------------------------------


def augmentation_space(family: str, bins: int, height: int, width: int) -> dict[str, tuple[Tensor, bool]]:
    """Operation to its magnitudes (float32 or int32 [bins], a scalar where it has none) and whether they are signed.

    `family` is autoaugment, randaugment, trivialaugment or augmix; bins are 10, 31, 31, 10 unless asked otherwise.
    """
    wide, mix = family == "trivialaugment", family == "augmix"
    reach = {
        "ShearX": 0.99 if wide else 0.3,
        "ShearY": 0.99 if wide else 0.3,
        "TranslateX": 32.0 if wide else width / 3.0 if mix else 150.0 / 331.0 * width,
        "TranslateY": 32.0 if wide else height / 3.0 if mix else 150.0 / 331.0 * height,
        "Rotate": 135.0 if wide else 30.0,
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.99 if wide else 0.9),
    }
    space = {name: (torch.linspace(0.0, most, bins), True) for name, most in reach.items()}
    lost_bits = (torch.arange(bins) / ((bins - 1) / (6 if wide else 4))).round().int()
    space["Posterize"] = ((4 if mix else 8) - lost_bits, False)
    space["Solarize"] = (torch.linspace(255.0, 0.0, bins), False)
    space |= {name: (torch.tensor(0.0), False) for name in ("AutoContrast", "Equalize")}
    if not mix:
        space["Invert" if family == "autoaugment" else "Identity"] = (torch.tensor(0.0), False)
    return space


def magnitudes(family: str, bins: int, height: int, width: int) -> dict[str, tuple[list[float], bool]]:
    """`augmentation_space` in Python numbers; [0.0] where an operation has no magnitude."""
    space = augmentation_space(family, bins, height, width)
    return {name: (values.reshape(-1).tolist(), signed) for name, (values, signed) in space.items()}


# --- policies ----------------------------------------------------------------------------------------------


def apply_steps(
    image: Image.Image, steps: Sequence[Step], space: dict[str, tuple[Tensor, bool]], interpolation: str = "nearest"
) -> Image.Image:
    """One operation after the other."""
    for name, bin_, negative in steps:
        values, signed = space[name]
        magnitude = float(values[bin_].item()) if values.ndim else 0.0
        image = apply_op(image, name, -magnitude if signed and negative else magnitude, interpolation)
    return image


def autoaugment(
    image: Image.Image, policy: str, number: int, happens: Sequence[bool], negative: Sequence[bool]
) -> Image.Image:
    """Sub-policy `number` of `policy`; of its two operations, which happen and which have a negative sign."""
    space = augmentation_space("autoaugment", 10, image.height, image.width)
    drawn = zip(AUTOAUGMENT[policy][number], happens, negative, strict=True)
    return apply_steps(image, [(name, bin_, minus) for (name, _, bin_), yes, minus in drawn if yes], space)


def randaugment(
    image: Image.Image, names: Sequence[str], negative: Sequence[bool], magnitude: int = 9, bins: int = 31
) -> Image.Image:
    """The operations `names` in turn, all at bin `magnitude`."""
    space = augmentation_space("randaugment", bins, image.height, image.width)
    return apply_steps(image, [(name, magnitude, minus) for name, minus in zip(names, negative, strict=True)], space)


def trivialaugment(image: Image.Image, name: str, bin_: int, negative: bool, bins: int = 31) -> Image.Image:
    """One operation of the wide space."""
    return apply_steps(image, [(name, bin_, negative)], augmentation_space("trivialaugment", bins, *image.size[::-1]))


def augmix(image: Image.Image, chains: Sequence[Sequence[Step]], keep: float, shares: Sequence[float]) -> Image.Image:
    """`keep` times the image and `shares[i]` times what the steps `chains[i]` make of it, summed and cut to uint8.

    torchvision turns the image into a tensor first, so that its warps are grid_sample's and its contrasts rounded
    otherwise. Here operations are Pillow's with bilinear warps, as in the authors' code (Hendrycks et al. 2020,
    arXiv 1912.02781), in torchvision's strengths; mixed as torchvision mixes, in float32 with the fraction cut off.
    """
    space = augmentation_space("augmix", 10, image.height, image.width)
    mix = np.float32(keep) * np.asarray(image, dtype=np.float32)
    for steps, share in zip(chains, shares, strict=True):
        mix += np.float32(share) * np.asarray(apply_steps(image, steps, space, "bilinear"), dtype=np.float32)
    return Image.fromarray(mix.astype(np.uint8))


# A sub-policy: two operations with their probabilities and bins of ten (0 where an operation has no magnitude).
# Source: Cubuk et al. 2019, arXiv 1805.09501, appendix, tables 7 to 9.
AUTOAUGMENT: dict[str, list[list[tuple[str, float, int]]]] = {
    "cifar10": [
        [("Invert", 0.1, 0), ("Contrast", 0.2, 6)],
        [("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)],
        [("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)],
        [("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)],
        [("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)],
        [("ShearY", 0.2, 7), ("Posterize", 0.3, 7)],
        [("Color", 0.4, 3), ("Brightness", 0.6, 7)],
        [("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)],
        [("Equalize", 0.6, 0), ("Equalize", 0.5, 0)],
        [("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)],
        [("Color", 0.7, 7), ("TranslateX", 0.5, 8)],
        [("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)],
        [("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)],
        [("Brightness", 0.9, 6), ("Color", 0.2, 8)],
        [("Solarize", 0.5, 2), ("Invert", 0.0, 0)],
        [("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)],
        [("Equalize", 0.2, 0), ("Equalize", 0.6, 0)],
        [("Color", 0.9, 9), ("Equalize", 0.6, 0)],
        [("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)],
        [("Brightness", 0.1, 3), ("Color", 0.7, 0)],
        [("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)],
        [("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)],
        [("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)],
        [("Equalize", 0.8, 0), ("Invert", 0.1, 0)],
        [("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)],
    ],
    "svhn": [
        [("ShearX", 0.9, 4), ("Invert", 0.2, 0)],
        [("ShearY", 0.9, 8), ("Invert", 0.7, 0)],
        [("Equalize", 0.6, 0), ("Solarize", 0.6, 6)],
        [("Invert", 0.9, 0), ("Equalize", 0.6, 0)],
        [("Equalize", 0.6, 0), ("Rotate", 0.9, 3)],
        [("ShearX", 0.9, 4), ("AutoContrast", 0.8, 0)],
        [("ShearY", 0.9, 8), ("Invert", 0.4, 0)],
        [("ShearY", 0.9, 5), ("Solarize", 0.2, 6)],
        [("Invert", 0.9, 0), ("AutoContrast", 0.8, 0)],
        [("Equalize", 0.6, 0), ("Rotate", 0.9, 3)],
        [("ShearX", 0.9, 4), ("Solarize", 0.3, 3)],
        [("ShearY", 0.8, 8), ("Invert", 0.7, 0)],
        [("Equalize", 0.9, 0), ("TranslateY", 0.6, 6)],
        [("Invert", 0.9, 0), ("Equalize", 0.6, 0)],
        [("Contrast", 0.3, 3), ("Rotate", 0.8, 4)],
        [("Invert", 0.8, 0), ("TranslateY", 0.0, 2)],
        [("ShearY", 0.7, 6), ("Solarize", 0.4, 8)],
        [("Invert", 0.6, 0), ("Rotate", 0.8, 4)],
        [("ShearY", 0.3, 7), ("TranslateX", 0.9, 3)],
        [("ShearX", 0.1, 6), ("Invert", 0.6, 0)],
        [("Solarize", 0.7, 2), ("TranslateY", 0.6, 7)],
        [("ShearY", 0.8, 4), ("Invert", 0.8, 0)],
        [("ShearX", 0.7, 9), ("TranslateY", 0.8, 3)],
        [("ShearY", 0.8, 5), ("AutoContrast", 0.7, 0)],
        [("ShearX", 0.7, 2), ("Invert", 0.1, 0)],
    ],
    "imagenet": [
        [("Posterize", 0.4, 8), ("Rotate", 0.6, 9)],
        [("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)],
        [("Equalize", 0.8, 0), ("Equalize", 0.6, 0)],
        [("Posterize", 0.6, 7), ("Posterize", 0.6, 6)],
        [("Equalize", 0.4, 0), ("Solarize", 0.2, 4)],
        [("Equalize", 0.4, 0), ("Rotate", 0.8, 8)],
        [("Solarize", 0.6, 3), ("Equalize", 0.6, 0)],
        [("Posterize", 0.8, 5), ("Equalize", 1.0, 0)],
        [("Rotate", 0.2, 3), ("Solarize", 0.6, 8)],
        [("Equalize", 0.6, 0), ("Posterize", 0.4, 6)],
        [("Rotate", 0.8, 8), ("Color", 0.4, 0)],
        [("Rotate", 0.4, 9), ("Equalize", 0.6, 0)],
        [("Equalize", 0.0, 0), ("Equalize", 0.8, 0)],
        [("Invert", 0.6, 0), ("Equalize", 1.0, 0)],
        [("Color", 0.6, 4), ("Contrast", 1.0, 8)],
        [("Rotate", 0.8, 8), ("Color", 1.0, 2)],
        [("Color", 0.8, 8), ("Solarize", 0.8, 7)],
        [("Sharpness", 0.4, 7), ("Invert", 0.6, 0)],
        [("ShearX", 0.6, 5), ("Equalize", 1.0, 0)],
        [("Color", 0.4, 0), ("Equalize", 0.6, 0)],
        [("Equalize", 0.4, 0), ("Solarize", 0.2, 4)],
        [("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)],
        [("Invert", 0.6, 0), ("Equalize", 1.0, 0)],
        [("Color", 0.6, 4), ("Contrast", 1.0, 8)],
        [("Equalize", 0.8, 0), ("Equalize", 0.6, 0)],
    ],
}
