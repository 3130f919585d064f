"""Deterministic whole-batch colour operations, one strength an image, equal to Pillow's on every pixel.

Images are uint8 [n, C, H, W]; a "factor" is float32 [n], 1 leaving an image as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Each level's entry in its image's (and channel's) table: `tables` is uint8 [n, 1 or C, 256]."""
    n, c, h, w = images.shape
    return tables.expand(n, c, 256).gather(2, images.reshape(n, c, h * w).long()).view(n, c, h, w)


def blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """`degenerate + factor * (images - degenerate)` clipped to 0..255 and cut off to whole levels: Image.blend.

    `degenerate` is uint8 and broadcasts to `images`. Multiply and add stay two roundings, as in Pillow: a fused one
    differs by a level here and there.
    """
    base = degenerate.float()
    return _bytes(images.float().sub_(base).mul_(_each(factor, images)).add_(base).clamp_(0, 255))


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """ImageEnhance.Brightness: 0 is black."""
    return _bytes(images.float().mul_(_each(factor, images)).clamp_(0, 255))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """ImageEnhance.Contrast: 0 is the image's mean grey, half rounded up. 1 or 3 channels."""
    pixels = images.shape[2] * images.shape[3]
    mean = (grey(images).sum((1, 2, 3), keepdim=True) + pixels // 2) // pixels
    return blend(mean.byte(), images, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """ImageEnhance.Color: 0 is the image in grey. 1 (nothing to do) or 3 channels."""
    return blend(grey(images), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """ImageEnhance.Sharpness: 0 is the smoothed image."""
    return blend(smooth(images), images, factor)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the `bits` (int64 [n], 0..8) highest bits of every level; 0 gives black."""
    return images & _each(((255 << (8 - bits)) & 255).byte(), images)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the levels at or above `threshold` (float32 [n])."""
    return images ^ (images >= _each(threshold, images)).byte().neg_()


def invert(images: Tensor) -> Tensor:
    """255 minus every level."""
    return ~images


def autocontrast(images: Tensor) -> Tensor:
    """ImageOps.autocontrast: stretch each channel to 0..255; a flat one keeps its level.

    In float64, for Pillow's own rounding errors: one pair of lowest and highest level in five has a level off by one.
    """
    wider = images.short()  # of uint8, torch.compile for a CPU gets amin wrong (pytorch issue 191499)
    low, high = wider.amin((2, 3)).unsqueeze(2), wider.amax((2, 3)).unsqueeze(2)
    if images.device.type == "mps":  # has no float64
        low, high = low.cpu(), high.cpu()
    flat = low == high
    low, span = low.masked_fill_(flat, 0), (high - low).masked_fill_(flat, 255).double()
    scale = torch.full_like(span, 255).div_(span)  # 255 / span would be 255 * (1 / span), rounded twice
    return look_up(images, _bytes((_levels(low) * scale).sub_(low * scale).clamp_(0, 255)).to(images.device))


def equalize(images: Tensor) -> Tensor:
    """ImageOps.equalize: flatten each channel's histogram; with fewer than 255 pixels below its highest level it stays.

    Whole numbers in float32, whose division is fast; a half makes it exact, however it rounds, up to 2^21 pixels.
    """
    n, c, h, w = images.shape
    index = images.reshape(n, c, h * w).long()
    ones = torch.ones_like(index, dtype=torch.float32)
    counts = torch.zeros(n, c, 256, device=images.device).scatter_add_(2, index, ones)
    below = counts.cumsum(2).sub_(counts)
    step = below.gather(2, images.amax((2, 3)).long().unsqueeze(2)).add_(0.5).div_(255).floor_()
    spread = _bytes(below.add_(step.div(2).floor_().add_(0.5)).div_(step).clamp_(max=255))
    levels = _levels(counts)
    return look_up(images, levels + (spread - levels) * (step > 0))  # torch.where, but five times as fast


def grey(images: Tensor) -> Tensor:
    """uint8 [n, 1, H, W]: ITU-R 601 luma as Pillow's convert("L") rounds it. 1 (as they are) or 3 channels."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.int().split(1, 1)
    luma = (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return luma.add_(0x8000).bitwise_right_shift_(16).byte()


def smooth(images: Tensor) -> Tensor:
    """ImageFilter.SMOOTH: 3x3 mean, the centre counted five times, rounded; the border pixels stay as they are."""
    h, w = images.shape[2:]
    if min(h, w) < 3:
        return images.clone()
    # one long row of pixels is fastest; where it wraps around, there are only border pixels
    flat = images.reshape(-1).short()
    across = (flat[:-2] + flat[1:-1]).add_(flat[2:])
    box = (across[: -2 * w] + across[w:-w]).add_(across[2 * w :])
    box.add_(flat[w + 1 : -w - 1], alpha=4)
    smoothed = torch.empty_like(images, memory_format=torch.contiguous_format)
    smoothed.view(-1)[w + 1 : -w - 1] = _bytes(box.mul_(2).add_(13) * (1 / 26))  # (box + 6.5) / 13: never near a whole
    smoothed[:, :, :: h - 1] = images[:, :, :: h - 1]
    smoothed[:, :, :, :: w - 1] = images[:, :, :, :: w - 1]
    return smoothed


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur by `sigma` pixels (float32 [n], 0: unchanged), cut off at `radius`, border pixels repeated."""
    distance = torch.arange(radius + 1, device=images.device) / sigma.clamp(min=1e-3).unsqueeze(1)
    weights = distance.square().mul(-0.5).exp().clamp(min=1e-9)  # denormal numbers are ten times as slow
    weights = weights / (2 * weights.sum(1, keepdim=True) - 1)
    blurred = functional.pad(images.float(), [radius] * 4, mode="replicate")
    for axis in (2, 3):
        size = images.shape[axis]
        centre = blurred.narrow(axis, radius, size) * _each(weights[:, 0], images)
        for k in range(1, radius + 1):
            pair = blurred.narrow(axis, radius - k, size) + blurred.narrow(axis, radius + k, size)
            centre.addcmul_(pair, _each(weights[:, k], images))
        blurred = centre
    return _bytes(blurred.round_().clamp_(0, 255))


def noise(images: Tensor, normal: Tensor, sigma: Tensor) -> Tensor:
    """Add `sigma` (float32 [n], in levels of 0..255) times `normal` (float32 [n, C, H, W]), rounded and clipped."""
    return _bytes((normal * _each(sigma, images)).add_(images).round_().clamp_(0, 255))


def _each(strength: Tensor, images: Tensor) -> Tensor:
    """One number an image [n], shaped to broadcast over its pixels."""
    return strength.view(-1, *[1] * (images.ndim - 1))


def _levels(like: Tensor) -> Tensor:
    """uint8 [n, 1, 256]: the tables that change nothing."""
    return torch.arange(256, dtype=torch.uint8, device=like.device).expand(len(like), 1, 256)


def _bytes(values: Tensor) -> Tensor:
    """Floats in 0..255 cut off to uint8; through int16, which is four times as fast on a CPU."""
    return values.short().byte()
