"""The operations that a recipe can name, each with its arguments as it writes them: they draw, then they apply.

Those in `MIXES` also change the labels. `PREPARED` makes ready what they need before the first batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from weightclass import seeding
from weightclass.augment import colour, mix, ops, policies, warps
from weightclass.augment.space import Space, Strengths

Size = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Count = Annotated[int, msgspec.Meta(ge=1, le=16)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Degrees = Annotated[float, msgspec.Meta(ge=0, le=180)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=100)]
Interpolation = Literal["nearest", "bilinear"]


@dataclass
class Draw:
    """One operation's stream of numbers at one step, a row an image: each call takes the next ones."""

    words: Tensor
    """`seeding.words` of the operation's key at this step."""
    slots: Tensor
    indices: Tensor
    """int64 [n]: the images' places in the data set."""
    epoch: int | Tensor
    fill: Tensor
    prepared: Any = None
    _taken: int = 0

    def bits(self, draws: int) -> Tensor:
        """int64 [draws, n] below 2^32."""
        self._taken += draws
        return seeding.drawn(self.words, draws, self._taken - draws)

    def integers(self, low: int, high: int, draws: int = 1) -> Tensor:
        """int64 [draws, n] in [low, high]."""
        return low + (self.bits(draws) * (high - low + 1) >> 32)

    def uniform(self, draws: int = 1) -> Tensor:
        """float32 [draws, n] in [0, 1)."""
        return (self.bits(draws) >> 8).float() * 2.0**-24

    def chance(self, p: float) -> Tensor:
        """bool [n], true with probability `p`."""
        return self.uniform()[0] < p

    def within(self, amount: float) -> Tensor:
        """float32 [n] between -amount and amount."""
        return (2 * self.uniform()[0] - 1) * amount

    def normal(self, shape: torch.Size) -> Tensor:
        """float32 of `shape` [n, ...], standard normal: `prepared` holds 65,536 quantiles."""
        count = shape[1:].numel()
        bits = self.bits((count + 1) // 2).t()
        halves = torch.cat([bits >> 16, bits & 0xFFFF], 1)[:, :count]
        return self.prepared.index_select(0, halves.flatten()).view(shape)

    def some(self, p: float, images: Tensor, operation: Callable[..., Tensor], *strengths: Tensor) -> Tensor:
        """`operation(images, *strengths)` for some of the images, each with probability `p`."""
        return ops.each_its_own(self.chance(p).long(), (None, operation), images, *strengths)


# --- where pixels lie --------------------------------------------------------------------------------------


def flip(draw: Draw, images: Tensor, p: Share = 0.5) -> Tensor:
    """Mirror left to right with probability `p`."""
    return ops.flip(images, draw.chance(p))


def altflip(draw: Draw, images: Tensor) -> Tensor:
    """Mirror half of the images in the first epoch, then each in every other epoch. Source: Jordan 2024, arXiv
    2404.00498."""
    coin = seeding.bits(draw.prepared, draw.indices)[0]
    return ops.flip(images, (coin + draw.epoch) % 2 == 1)


def crop(draw: Draw, images: Tensor, padding: Size, mode: Literal["zero", "reflect"] = "zero") -> Tensor:
    """Pad by `padding` pixels on every side, cut the original size at a random place."""
    down, right = draw.integers(-padding, padding, 2)
    return ops.crop(images, down, right, padding, mode)


def shear_x(
    draw: Draw, images: Tensor, amount: Share, interpolation: Interpolation = "nearest", p: Share = 1
) -> Tensor:
    """Slant by up to `amount` pixels to the side for each pixel down."""
    return _warped(draw, images, warps.shear_x(draw.within(amount)), interpolation, p)


def shear_y(
    draw: Draw, images: Tensor, amount: Share, interpolation: Interpolation = "nearest", p: Share = 1
) -> Tensor:
    """Slant by up to `amount` pixels down for each pixel to the side."""
    return _warped(draw, images, warps.shear_y(draw.within(amount)), interpolation, p)


def translate_x(draw: Draw, images: Tensor, pixels: Size, p: Share = 1) -> Tensor:
    """Move sideways by up to `pixels`, black behind."""
    right = draw.integers(-pixels, pixels)[0]
    return draw.some(p, images, partial(ops.crop, padding=pixels), torch.zeros_like(right), right)


def translate_y(draw: Draw, images: Tensor, pixels: Size, p: Share = 1) -> Tensor:
    """Move up or down by up to `pixels`, black behind."""
    down = draw.integers(-pixels, pixels)[0]
    return draw.some(p, images, partial(ops.crop, padding=pixels), down, torch.zeros_like(down))


def rotate(
    draw: Draw, images: Tensor, degrees: Degrees, interpolation: Interpolation = "nearest", p: Share = 1
) -> Tensor:
    """Turn by up to `degrees` either way."""
    return _warped(draw, images, warps.rotation(draw.within(degrees), *images.shape[2:]), interpolation, p)


def perspective(draw: Draw, images: Tensor, scale: Share = 0.5, p: Share = 0.5) -> Tensor:
    """Move each corner inwards by up to half of `scale` times the side, with probability `p`; torchvision's draws."""
    h, w = images.shape[2:]
    right, down = draw.integers(0, int(scale * (w // 2)), 4), draw.integers(0, int(scale * (h // 2)), 4)
    x = torch.stack([right[0], w - 1 - right[1], w - 1 - right[2], right[3]], 1)
    y = torch.stack([down[0], down[1], h - 1 - down[2], h - 1 - down[3]], 1)
    return draw.some(p, images, warps.perspective, torch.stack([x, y], 2))


def _warped(draw: Draw, images: Tensor, matrices: Tensor, interpolation: Interpolation, p: float) -> Tensor:
    return draw.some(p, images, partial(warps.warp, interpolation=interpolation), matrices)


# --- colours -----------------------------------------------------------------------------------------------


def brightness(draw: Draw, images: Tensor, amount: Share, p: Share = 1) -> Tensor:
    """Multiply by 1 - amount to 1 + amount."""
    return draw.some(p, images, colour.brightness, 1 + draw.within(amount))


def contrast(draw: Draw, images: Tensor, amount: Share, p: Share = 1) -> Tensor:
    """Multiply the distance from the mean grey by 1 - amount to 1 + amount."""
    return draw.some(p, images, colour.contrast, 1 + draw.within(amount))


def saturation(draw: Draw, images: Tensor, amount: Share, p: Share = 1) -> Tensor:
    """Multiply the distance from grey by 1 - amount to 1 + amount."""
    return draw.some(p, images, colour.saturation, 1 + draw.within(amount))


def sharpness(draw: Draw, images: Tensor, amount: Share, p: Share = 1) -> Tensor:
    """Multiply the distance from a smoothed picture by 1 - amount to 1 + amount."""
    return draw.some(p, images, colour.sharpness, 1 + draw.within(amount))


def posterize(draw: Draw, images: Tensor, bits: Annotated[int, msgspec.Meta(ge=1, le=8)], p: Share = 0.5) -> Tensor:
    """Keep the `bits` highest bits of every level."""
    return draw.some(p, images, colour.posterize, torch.full_like(draw.slots, bits))


def solarize(
    draw: Draw, images: Tensor, threshold: Annotated[float, msgspec.Meta(ge=0, le=256)] = 128, p: Share = 0.5
) -> Tensor:
    """Invert the levels from `threshold` on."""
    return draw.some(p, images, colour.solarize, torch.full_like(draw.slots, threshold, dtype=torch.float32))


def autocontrast(draw: Draw, images: Tensor, p: Share = 0.5) -> Tensor:
    """Stretch each channel to 0..255."""
    return draw.some(p, images, colour.autocontrast)


def equalize(draw: Draw, images: Tensor, p: Share = 0.5) -> Tensor:
    """Use all levels of each channel equally often."""
    return draw.some(p, images, colour.equalize)


def invert(draw: Draw, images: Tensor, p: Share = 0.5) -> Tensor:
    """The negative."""
    return draw.some(p, images, colour.invert)


def blur(draw: Draw, images: Tensor, sigma: Annotated[float, msgspec.Meta(gt=0, le=8)], p: Share = 0.5) -> Tensor:
    """Gaussian blur of up to `sigma` pixels."""
    operation = partial(colour.blur, radius=math.ceil(3 * sigma))
    return draw.some(p, images, operation, draw.uniform()[0] * sigma)


def noise(draw: Draw, images: Tensor, sigma: Annotated[float, msgspec.Meta(gt=0, le=255)], p: Share = 0.5) -> Tensor:
    """Add Gaussian noise of up to `sigma` levels (of 255)."""
    return draw.some(p, images, colour.noise, draw.normal(images.shape), draw.uniform()[0] * sigma)


# --- holes -------------------------------------------------------------------------------------------------


def cutout(draw: Draw, images: Tensor, size: Size) -> Tensor:
    """Fill a square of `size` pixels, centred on a random pixel, with the mean colour (black, where the mean is
    negative)."""
    h, w = images.shape[2:]
    top, left = draw.integers(0, h - 1)[0] - size // 2, draw.integers(0, w - 1)[0] - size // 2
    side = torch.full_like(top, size)
    return ops.erase(images, top, left, side, side, draw.fill)


def erase(draw: Draw, images: Tensor, p: Share = 0.5, least: Share = 0.02, most: Share = 0.33) -> Tensor:
    """Fill a rectangle of `least` to `most` of the image, its sides 3:10 to 10:3, with the mean colour."""
    h, w = images.shape[2:]
    area = (least + (most - least) * draw.uniform()[0]) * h * w
    stretch = torch.exp(draw.within(math.log(10 / 3)) / 2)
    high = (area.sqrt() * stretch).clamp(area / w, torch.full_like(area, h))
    high, wide = high.round().clamp(1, h), (area / high).round().clamp(1, w)
    top, left = draw.uniform()[0] * (h + 1 - high), draw.uniform()[0] * (w + 1 - wide)
    boxes = [part.long() for part in (top, left, high, wide)]
    return draw.some(p, images, partial(ops.erase, fill=draw.fill), *boxes)


# --- policies: every image its own -------------------------------------------------------------------------


def autoaugment(draw: Draw, images: Tensor, policy: Literal["cifar10", "svhn", "imagenet"] = "cifar10") -> Tensor:
    """One of the 25 sub-policies learned on that set: two operations, each with its own chance."""
    space, rows, chances = draw.prepared
    number, sign, happens = draw.integers(0, len(rows) - 1)[0], draw.integers(0, 1, 2), draw.uniform(2)
    for place in range(2):
        row = rows[number, place, sign[place]]
        images = space.apply(images, row * (happens[place] < chances[number, place]))
    return images


def randaugment(
    draw: Draw,
    images: Tensor,
    count: Count = 2,
    magnitude: Annotated[int, msgspec.Meta(ge=0, le=255)] = 9,
    bins: Annotated[int, msgspec.Meta(ge=2, le=256)] = 31,
) -> Tensor:
    """`count` of 14 operations, all at `magnitude` of `bins` steps."""
    space = draw.prepared
    for _ in range(count):
        row = space.index[draw.integers(0, len(space.names) - 1)[0], magnitude, draw.integers(0, 1)[0]]
        images = space.apply(images, row)
    return images


def trivialaugment(draw: Draw, images: Tensor, bins: Annotated[int, msgspec.Meta(ge=2, le=256)] = 31) -> Tensor:
    """One of 14 operations at one of `bins` strengths of a wide range."""
    space = draw.prepared
    number, step, sign = draw.integers(0, len(space.names) - 1), draw.integers(0, bins - 1), draw.integers(0, 1)
    return space.apply(images, space.index[number[0], step[0], sign[0]])


def augmix(
    draw: Draw,
    images: Tensor,
    severity: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3,
    width: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3,
    depth: Annotated[int, msgspec.Meta(ge=0, le=10)] = 0,
    alpha: Positive = 1.0,
) -> Tensor:
    """Mix the image with `width` chains of `depth` operations each (0: one to three of them, drawn)."""
    space, kept, gamma = draw.prepared
    weights = gamma[draw.integers(0, len(gamma) - 1, width)]
    own = kept[draw.integers(0, len(kept) - 1)[0]]
    weights = weights / weights.sum(0) * (1 - own)
    mixed = images * own.view(-1, 1, 1, 1)
    for weight in weights:
        chain, length = images, draw.integers(1, 3)[0]
        for link in range(depth or 3):
            number, step = draw.integers(0, len(space.names) - 1)[0], draw.integers(0, severity - 1)[0]
            row = space.index[number, step, draw.integers(0, 1)[0]]
            chain = space.apply(chain, row if depth else row * (link < length))
        mixed += chain * weight.view(-1, 1, 1, 1)
    return mixed.to(torch.uint8)


# --- mixing with another image, labels and all -------------------------------------------------------------


def mixup(draw: Draw, images: Tensor, targets: Tensor, alpha: Positive = 1.0, p: Share = 1) -> tuple[Tensor, Tensor]:
    """Blend with the neighbour in the batch, shares drawn from Beta(alpha, alpha), with probability `p`."""
    return mix.mixup(images, targets, _share(draw, p), mix.partners(draw.slots))


def cutmix(draw: Draw, images: Tensor, targets: Tensor, alpha: Positive = 1.0, p: Share = 1) -> tuple[Tensor, Tensor]:
    """Paste a box of the neighbour in the batch, its area drawn from Beta(alpha, alpha), with probability `p`."""
    h, w = images.shape[2:]
    box = mix.box(_share(draw, p), draw.integers(0, h - 1)[0], draw.integers(0, w - 1)[0], h, w)
    return mix.cutmix(images, targets, *box, mix.partners(draw.slots))


def _share(draw: Draw, p: float) -> Tensor:
    """float32 [n]: what is kept of each image itself; all of it, but with probability `p`."""
    share = draw.prepared[draw.integers(0, len(draw.prepared) - 1)[0]]
    return torch.where(draw.chance(p), share, 1.0)


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    operation.__name__: operation
    for operation in (
        *(flip, altflip, crop, shear_x, shear_y, translate_x, translate_y, rotate, perspective),
        *(brightness, contrast, saturation, sharpness, posterize, solarize, autocontrast, equalize, invert),
        *(blur, noise, cutout, erase, autoaugment, randaugment, trivialaugment, augmix),
    )
}
MIXES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"mixup": mixup, "cutmix": cutmix}
COLOURED = {"saturation", "autoaugment", "randaugment", "trivialaugment", "augmix"}


class Setting(NamedTuple):
    """What an operation is made ready for."""

    seed: int
    place: int
    height: int
    width: int
    device: torch.device

    def space(self, strengths: Strengths, interpolation: Interpolation = "nearest") -> Space:
        return Space(strengths, self.height, self.width, self.device, interpolation)


def _autoaugment(setting: Setting, policy: str) -> tuple[Space, Tensor, Tensor]:
    """The space, its rows int64 [sub-policies, 2 operations, 2 signs] and chances float32 [sub-policies, 2]."""
    subs, strengths = policies.AUTOAUGMENT[policy], policies.auto_strengths(10, setting.height, setting.width)
    space = setting.space(strengths | {"Invert": ([0.0], False)})
    rows = [torch.stack([space.index[space.names.index(name), step] for name, _, step in sub]) for sub in subs]
    chances = torch.tensor([[chance for _, chance, _ in sub] for sub in subs], device=setting.device)
    return space, torch.stack(rows), chances


def _augmix(setting: Setting, alpha: float, **_: int) -> tuple[Space, Tensor, Tensor]:
    space = setting.space(policies.mix_strengths(setting.height, setting.width), "bilinear")
    return space, mix.beta_quantiles(alpha, alpha).to(setting.device), mix.gamma_quantiles(alpha).to(setting.device)


PREPARED: dict[str, Callable[..., Any]] = {
    "altflip": lambda setting: seeding.key(setting.seed, f"augment/{setting.place}/altflip"),
    "autoaugment": _autoaugment,
    "randaugment": lambda setting, bins, **_: setting.space(
        policies.rand_strengths(bins, setting.height, setting.width)
    ),
    "trivialaugment": lambda setting, bins: setting.space(policies.wide_strengths(bins)),
    "augmix": _augmix,
    "noise": lambda setting, **_: mix.normal_quantiles().to(setting.device),
    **dict.fromkeys(MIXES, lambda setting, alpha, **_: mix.beta_quantiles(alpha, alpha).to(setting.device)),
}
