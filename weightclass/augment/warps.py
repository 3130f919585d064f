"""Deterministic whole-batch geometric operations: every image its own warp, black (0) from outside, as Pillow does it.

A warp is a matrix float64 [n, 6] from output to input pixels, x_in = a x + b y + c and y_in = d x + e y + f, a pixel's
centre lying at +0.5. Nearest-neighbour pictures equal Pillow's on every pixel; bilinear ones differ by one level in
about 1 of 1,000 values, and wholly where a pixel's centre falls on the very edge of the image, in or out by rounding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

# --- matrices: strengths of shape [n] in, float64 [n, 6] out -------------------------------------------------


def _double(strength: Tensor) -> Tensor:
    """float64, on the CPU where the device (Apple's MPS) has none."""
    return (strength.cpu() if strength.device.type == "mps" else strength).double()


def shear_x(amount: Tensor) -> Tensor:
    """Slant to the left by `amount` pixels for each pixel down: torchvision's ShearX.

    (It goes by way of the angle. The last bit that this changes can turn a rounding in `fixed` where the amount is an
    odd multiple of 2^-17 or 2^-18; no published one is.)
    """
    amount = _double(amount)
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return torch.stack([one, amount, zero, zero, one, zero], 1)


def shear_y(amount: Tensor) -> Tensor:
    """Slant up by `amount` pixels for each pixel to the right: torchvision's ShearY."""
    amount = _double(amount)
    one, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return torch.stack([one, zero, zero, amount, one, zero], 1)


def translation(right: Tensor, down: Tensor) -> Tensor:
    """Move to the `right` and `down` by whole pixels; parts of a pixel are cut off."""
    right, down = _double(right).trunc(), _double(down).trunc()
    one, zero = torch.ones_like(right), torch.zeros_like(right)
    return torch.stack([one, zero, -right, zero, one, -down], 1)


def rotation(degrees: Tensor, height: int, width: int) -> Tensor:
    """Turn counter-clockwise about the image's centre, in the arithmetic of Pillow's Image.rotate."""
    angle = -torch.deg2rad(_double(degrees) % 360)
    cos, sin = torch.round(angle.cos(), decimals=15), torch.round(angle.sin(), decimals=15)
    x, y = width / 2, height / 2
    return torch.stack([cos, sin, (cos * -x + sin * -y) + x, -sin, cos, (-sin * -x + cos * -y) + y], 1)


# --- nearest neighbour ---------------------------------------------------------------------------------------


def warp(images: Tensor, matrices: Tensor, interpolation: Literal["nearest", "bilinear"] = "nearest") -> Tensor:
    """Each of `images`, uint8 [n, C, H, W], through its matrix [n, 6]: Pillow's Image.transform(AFFINE).

    (Enlarging or shrinking without a slant is floating-point in Pillow, here as fixed-point as the rest.)
    """
    if interpolation == "bilinear":
        return project(images, projective(matrices))
    return affine(images, fixed(matrices))


def fixed(matrices: Tensor) -> Tensor:
    """int32 [n, 6]: `matrices` in Pillow's 16.16 fixed point, from output pixel *numbers* to input pixels."""
    a, b, c = matrices.reshape(-1, 2, 3).unbind(2)
    numbers = torch.stack([a, b, c + a * 0.5 + b * 0.5], 2)
    return (numbers * 65536 + 0.5).floor().int().view(-1, 6)


def affine(images: Tensor, fixed: Tensor) -> Tensor:
    """Each of `images`, uint8 [n, C, H, W], through its `fixed` matrix: the input pixel nearest to each output pixel.

    Exact while input places, in pixels, stay within int16: Pillow itself goes over to floating point there.
    """
    n, c, h, w = images.shape
    a, b, start = fixed.to(images.device).reshape(n, 2, 3, 1, 1).unbind(2)
    columns = torch.arange(w, dtype=torch.int32, device=images.device)
    rows = torch.arange(h, dtype=torch.int32, device=images.device).view(h, 1)
    # places in the image with a black frame of one pixel, which all that lies outside is clamped to
    places = (a * columns).add_(start + 65536) + b * rows
    x, y = places.bitwise_right_shift_(16).unbind(1)
    flat = torch.add(x.clamp_(0, w + 1), y.clamp_(0, h + 1), alpha=w + 2).long().view(n, 1, h * w)
    framed = functional.pad(images, (1, 1, 1, 1)).flatten(2)
    return framed.gather(2, flat.expand(n, c, h * w)).view(n, c, h, w)


# --- bilinear ------------------------------------------------------------------------------------------------


def perspective(images: Tensor, corners: Tensor) -> Tensor:
    """Each of `images`, uint8 [n, C, H, W], with its corners moved to `corners`: torchvision's F.perspective, bilinear.

    `corners` int64 [n, 4, 2] are (x, y), clockwise from the top left. Where they span no quadrilateral: black.
    """
    return project(images, homography(corners, *images.shape[2:]))


def projective(matrices: Tensor) -> Tensor:
    """float32 [n, 8] for `project`: affine matrices [n, 6] as homographies."""
    return functional.pad(matrices.float(), (0, 2))


def homography(corners: Tensor, height: int, width: int) -> Tensor:
    """float32 [n, 8]: (a x + b y + c, d x + e y + f) / (g x + h y + 1) takes `corners` back to those of the image.

    In homogeneous coordinates a line is the cross product of two of its points and vanishes on them. So u = U / W and
    v = V / W, 0 and 1 on opposite sides, are made of the four sides: U of the left one, W - U of the right one, V of
    the top one, W - V of the bottom one; the weights make the two ways to W agree at the corners.
    """
    points = functional.pad(_double(corners), (0, 1), value=1.0)
    p0, p1, p2, p3 = points.unbind(1)
    sides = torch.linalg.cross(torch.stack([p0, p1, p3], 1), torch.stack([p3, p2, p2], 1))
    left, right, bottom = sides.unbind(1)
    at = (sides @ points.mT).unsqueeze(3)  # [n, side, corner, 1]
    u = left * (at[:, 2, 1] * at[:, 1, 0])
    w = u + right * (at[:, 2, 0] * at[:, 0, 1])
    v = w - bottom * (at[:, 1, 0] * at[:, 0, 1])
    rows = torch.cat([u * (width - 1), v * (height - 1), w], 1)
    return (rows[:, :8] / rows[:, 8:]).float()


def project(images: Tensor, coefficients: Tensor) -> Tensor:
    """Each of `images`, uint8 [n, C, H, W], through its homography, float32 [n, 8]: Image.transform(PERSPECTIVE)."""
    n, _, h, w = images.shape
    if images.device.type == "mps":  # whose grid_sample had no "border" before torch 2.13
        return project(images.cpu(), coefficients.cpu()).to(images.device)
    a, b, start = coefficients[:, :6].reshape(n, 2, 3, 1, 1).unbind(2)
    g, k = coefficients[:, 6:].reshape(n, 2, 1, 1, 1).unbind(1)
    columns = torch.arange(0.5, w, device=images.device)
    rows = torch.arange(0.5, h, device=images.device).view(h, 1)
    places = (a * columns).add_(start) + b * rows
    places.div_((g * columns).add_(1) + k * rows)
    places[:, 0].div_(w / 2)
    places[:, 1].div_(h / 2)
    inside = places.clamp(0, 2 - 2**-23).eq_(places)  # in [0, 2); a comparison that makes bools is four times as slow
    grid = places.sub_(1).permute(0, 2, 3, 1)
    found = functional.grid_sample(images.float(), grid, "bilinear", "border", align_corners=False)
    # Pillow cuts off. The nudge, far above float32's error, keeps whole levels whole
    found.add_(2**-10).mul_(inside[:, :1].mul_(inside[:, 1:]))
    return found.to(torch.int16).to(torch.uint8)  # by way of int16: four times as fast
