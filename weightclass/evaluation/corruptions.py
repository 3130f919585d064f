"""CIFAR-10-C style corruptions: 15 ways to spoil pictures, each in 5 severities, a whole batch at a time.

Kinds and parameters are those of `make_cifar_c.py` (Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261; github.com/
hendrycks/robustness). The code and the random numbers are ours, so figures are like CIFAR-10-C's, not the same:
- frost is grown here (needles in patches of rime) instead of cut out of their photographs;
- motion blur (ImageMagick's), elastic's first warp (OpenCV's) and snow are not rounded on the way, a warp's border is
  always reflected about its edge, and glass blur copies pixels: so do their pictures, for their swap is of NumPy views.
Lengths are in pixels whatever the image's size, elastic's in its shorter side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from weightclass import seeding
from weightclass.config import near_miss
from weightclass.errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)
Draw = Callable[..., Tensor]
KINDS: dict[str, tuple[Callable[[Tensor, Any, Draw], Tensor], tuple[Any, ...]]] = {}
"""What spoils [n, C, H, W] in 0..1, by which parameters; draw(*shape) is float32 [n, *shape] in [0, 1), ever new."""


def corrupt(images: Tensor, kind: str, severity: int, first: int = 0, seed: int = 0) -> Tensor:
    """`images`, uint8 [n, C, H, W] with C = 1 or 3, spoiled by one of `KINDS` at severity 1 to 5; uint8 of that shape.

    They are numbers `first`, `first + 1` ... of their set: an image's draws depend on (seed, kind, severity, number)
    alone, so that any batches give the same pictures. Raises UserError.
    """
    if kind not in KINDS or severity not in SEVERITIES:
        raise UserError(f"corruption {kind!r} at severity {severity} (of 1 to 5){near_miss(kind, KINDS)}")
    numbers, calls = torch.arange(first, first + len(images)), itertools.count()

    def draw(*shape: int) -> Tensor:
        key = seeding.key(seed, f"corrupt/{kind}", severity, next(calls))
        return seeding.uniform(key, numbers, math.prod(shape)).T.contiguous().view(-1, *shape)

    spoil, settings = KINDS[kind]
    spoiled = spoil(images.float() / 255, settings[severity - 1], draw).clamp(0, 1)
    # Cut off as theirs are; the nudge, far above float32's error, keeps whole levels whole.
    return spoiled.mul(255).add(2**-10).to(torch.int16).to(torch.uint8)


def _kind(*settings: Any) -> Callable[[Any], Any]:
    return lambda spoil: KINDS.setdefault(spoil.__name__, (spoil, settings))[0]


def normal(draws: Tensor) -> Tensor:
    """Uniform draws as standard normal ones, within 5.4."""
    return torch.erfinv(2 * draws - (1 - 2**-24)) * math.sqrt(2)


def blurred(x: Tensor, sigma: float, mode: str = "nearest", truncate: float = 4) -> Tensor:
    """SciPy's Gaussian filter of [n, C, H, W], as the two matrices that it makes of the unit vectors."""
    from scipy.ndimage import gaussian_filter

    filters = (gaussian_filter(np.eye(side), (sigma, 0), mode=mode, truncate=truncate) for side in x.shape[2:])
    rows, columns = (torch.from_numpy(each).float() for each in filters)
    return rows @ x @ columns.T


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of [n, C, H, W], enlarged linearly to the same size."""
    kept = [math.ceil(side / factor) for side in x.shape[2:]]
    sides = [round(side * factor) for side in kept]
    return _middle(functional.interpolate(_middle(x, *kept), sides, mode="bilinear", align_corners=True), *x.shape[2:])


def _middle(x: Tensor, height: int, width: int) -> Tensor:
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


def smeared(x: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Motion blur of [n, C, H, W] along `degrees` [n], as ImageMagick's: half a Gaussian, edges drawn out."""
    n, c, h, w = x.shape
    weights, angles = torch.exp(-(torch.arange(2 * radius + 1) ** 2) / (2 * sigma**2)), degrees.deg2rad().view(n, 1)
    out = torch.zeros_like(x)
    for step, weight in enumerate((weights / weights.sum()).tolist()):
        right, down = (torch.ceil(step * part - 0.5).long() for part in (angles.cos(), angles.sin()))
        rows, columns = (torch.arange(h) + down).clamp_(0, h - 1), (torch.arange(w) + right).clamp_(0, w - 1)
        places = (w * rows.view(n, 1, h, 1) + columns.view(n, 1, 1, w)).expand(n, c, h, w)
        out.add_(x.flatten(2).gather(2, places.flatten(2)).view(x.shape), alpha=weight)
    return out


def plasma(draw: Draw, height: int, width: int, decay: float) -> Tensor:
    """A landscape [n, 1, height, width] in 0..1 by diamonds and squares on a torus; a larger `decay` is smoother."""
    step = 1 << (max(height, width, 2) - 1).bit_length()
    bumps = 2 * draw(step, step) - 1
    land = torch.zeros_like(bumps)
    while step > 1:
        half, corners = step // 2, land[:, ::step, ::step]
        below, beside = corners + corners.roll(-1, 1), corners + corners.roll(-1, 2)
        middles = (below + below.roll(-1, 2)) / 4 + bumps[:, half::step, half::step]
        land[:, half::step, half::step] = middles
        land[:, ::step, half::step] = (middles + middles.roll(1, 1) + beside) / 4 + bumps[:, ::step, half::step]
        land[:, half::step, ::step] = (middles + middles.roll(1, 2) + below) / 4 + bumps[:, half::step, ::step]
        step, bumps = half, bumps / decay
    low, high = land.amin((1, 2), keepdim=True), land.amax((1, 2), keepdim=True)
    return ((land - low) / (high - low))[:, None, :height, :width]


def _each(x: Tensor, change: Callable[[Any], Any]) -> Tensor:
    """What `change` makes of each image as a Pillow one."""
    from PIL import Image

    n, c, h, w = x.shape
    pixels = x.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    changed = [np.asarray(change(Image.fromarray(one.squeeze(2) if c == 1 else one))) for one in pixels]
    return torch.from_numpy(np.stack(changed)).view(n, h, w, c).permute(0, 3, 1, 2) / 255


@_kind(0.04, 0.06, 0.08, 0.09, 0.10)
def gaussian_noise(x: Tensor, sigma: float, draw: Draw) -> Tensor:
    return x + sigma * normal(draw(*x.shape[1:]))


@_kind(500, 250, 100, 75, 50)
def shot_noise(x: Tensor, photons: int, draw: Draw) -> Tensor:
    """Poisson's inverse distribution, level after level one sorted table of all that is not clipped."""
    from scipy.special import pdtr

    levels = np.arange(256)[:, None]
    table = torch.from_numpy(levels + pdtr(np.arange(photons), levels * (photons / 255))).flatten()
    level = x.mul(255).round().double()
    found = torch.searchsorted(table, level + draw(*x.shape[1:]), right=True)
    return (found - photons * level).float() / photons


@_kind(0.01, 0.02, 0.03, 0.05, 0.07)
def impulse_noise(x: Tensor, share: float, draw: Draw) -> Tensor:
    return x.where((u := draw(*x.shape[1:])) >= share, (u < share / 2).float())


@_kind((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
def defocus_blur(x: Tensor, c: tuple[float, float], draw: Draw) -> Tensor:
    """A disk, its edge softened by three taps of a Gaussian."""
    squares = torch.tensor([1.0, 0.0, 1.0])
    disk, taps = (squares[:, None] + squares <= c[0] ** 2).float(), torch.exp(-squares / (2 * c[1] ** 2))
    soft = taps[:, None] * taps
    kernel = functional.conv2d(disk[None, None] / disk.sum(), soft[None, None] / soft.sum(), padding=2)
    return functional.conv2d(functional.pad(x, (2, 2, 2, 2), "reflect").flatten(0, 1)[:, None], kernel).view(x.shape)


@_kind((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))
def glass_blur(x: Tensor, c: tuple[float, int], draw: Draw) -> Tensor:
    """From the third row and column on a pixel becomes itself or a neighbour above or to the left. They go from the
    last pixel to the first, so that none has changed when it is copied: all can go at once."""
    n, channels, h, w = x.shape
    x = blurred(x, c[0]).mul(255).add(2**-10).floor() / 255
    free = (torch.arange(h)[:, None] > 1) & (torch.arange(w) > 1)
    for _ in range(c[1]):
        up, left = ((draw(2, h, w) < 0.5) & free).long().unbind(1)
        places = (torch.arange(h * w).view(h, w) - w * up - left).view(n, 1, h * w)
        x = x.flatten(2).gather(2, places.expand(n, channels, h * w)).view(x.shape)
    return blurred(x, c[0])


@_kind((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
def motion_blur(x: Tensor, c: tuple[int, float], draw: Draw) -> Tensor:
    return smeared(x, c[0], c[1], 90 * draw() - 45) + 0.5 / 255  # ImageMagick rounds


@_kind(1.06, 1.11, 1.16, 1.21, 1.26)
def zoom_blur(x: Tensor, end: float, draw: Draw) -> Tensor:
    factors = np.arange(1, end, 0.01).tolist()
    return sum((zoomed(x, factor) for factor in factors), x) / (len(factors) + 1)


@_kind(
    *((0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9)),
    *((0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
)
def snow(x: Tensor, c: tuple[float, float, float, float, int, float, float], draw: Draw) -> Tensor:
    mean, spread, zoom, least, radius, sigma, kept = c
    flakes = zoomed(mean + spread * normal(draw(1, *x.shape[2:])), zoom)
    flakes = smeared(flakes.where(flakes >= least, 0).clamp(max=1), radius, sigma, 90 * draw() - 135)
    grey = torch.einsum("nchw,c->nhw", x, torch.tensor([0.299, 0.587, 0.114] if x.shape[1] == 3 else [1.0]))[:, None]
    return kept * x + (1 - kept) * torch.maximum(x, 1.5 * grey + 0.5) + flakes + flakes.flip(2, 3)


@_kind((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
def frost(x: Tensor, c: tuple[float, float], draw: Draw) -> Tensor:
    h, w = x.shape[2:]
    seeds, degrees = (draw(1, h, w) > 0.97).float(), 360 * draw()
    needles = smeared(seeds, 8, 4, degrees) + smeared(seeds, 8, 4, degrees + 60)  # ice branches at 60 degrees
    ice = (0.15 + 0.6 * plasma(draw, h, w, 2) + 2.5 * needles).clamp(max=1)
    return c[0] * x + c[1] * ice * torch.tensor([0.85, 0.95, 1.0] if x.shape[1] == 3 else [0.93]).view(-1, 1, 1)


@_kind((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
def fog(x: Tensor, c: tuple[float, float], draw: Draw) -> Tensor:
    most = x.amax((1, 2, 3), keepdim=True)
    return (x + c[0] * plasma(draw, x.shape[2], x.shape[3], c[1])) * most / (most + c[0])


@_kind(0.05, 0.1, 0.15, 0.2, 0.3)
def brightness(x: Tensor, more: float, draw: Draw) -> Tensor:
    """More of HSV's value, which scales all channels alike; black, which has no colour, turns grey."""
    value = x.amax(1, keepdim=True)
    return torch.where(value > 0, x * (value + more).clamp(max=1) / value.clamp(min=1e-3), more)


@_kind(0.75, 0.5, 0.4, 0.3, 0.15)
def contrast(x: Tensor, share: float, draw: Draw) -> Tensor:
    return x.mean((2, 3), keepdim=True).lerp(x, share)


@_kind((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
def elastic_transform(x: Tensor, c: tuple[float, float, float], draw: Draw) -> Tensor:
    """Three points of the middle moved, an affine warp; then every pixel by a smooth field."""
    n, _, h, w = x.shape
    strength, sigma, jitter = (min(h, w) * share for share in c)
    before = torch.tensor([w // 2, h // 2]) + min(h, w) // 3 * torch.tensor([[1, 1], [1, -1], [-1, -1]]).double()
    after = before + jitter * (2 * draw(3, 2) - 1)
    matrix = torch.linalg.solve(functional.pad(after, (0, 1), value=1.0), before.expand(n, 3, 2)).float()
    here = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"), 2).float()
    warped = (here.view(-1, 2) @ matrix[:, :2] + matrix[:, 2:]).view(n, h, w, 2)
    field = blurred(2 * draw(2, h, w) - 1, sigma, "reflect", 3).permute(0, 2, 3, 1)
    for places in (warped, here + strength * field):
        grid = (2 * places + 1) / torch.tensor([w, h]) - 1
        x = functional.grid_sample(x, grid, "bilinear", "reflection", align_corners=False)
    return x


@_kind(0.95, 0.9, 0.85, 0.75, 0.65)
def pixelate(x: Tensor, share: float, draw: Draw) -> Tensor:
    h, w = x.shape[2:]
    few = max(1, int(w * share)), max(1, int(h * share))
    return _each(x, lambda image: image.resize(few, 4).resize((w, h), 4))  # 4: Pillow's BOX


@_kind(80, 65, 58, 50, 40)
def jpeg_compression(x: Tensor, quality: int, draw: Draw) -> Tensor:
    from PIL import Image

    def change(image: Any) -> Any:
        image.save(file := BytesIO(), "JPEG", quality=quality)
        return Image.open(file)

    return _each(x, change)
