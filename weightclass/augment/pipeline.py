"""From readable text in a recipe, `["crop(4)", "flip", "cutout(8)"]`, to a function of (batch, step).

Each operation's draws hang on (seed, operation and its place, step, slot) alone: whatever the device, the number of
ranks or micro-batches, the same image at the same step gets the same picture.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
import torch
from torch import Tensor

from weightclass import seeding
from weightclass.augment import ops
from weightclass.config import Table, near_miss
from weightclass.errors import UserError

Size = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Channel = Annotated[float, msgspec.Meta(ge=-10, le=10)]


class Augment(Table):
    """Recipe table [augment]."""

    ops: tuple[str, ...] = ()
    """Operations in order, each with its arguments: "flip", "crop(4)", "crop(4, reflect)", "cutout(8)"."""
    mean: tuple[Channel, ...] = ()
    """Normalisation, one number a channel in units of 0..1; empty: measured on the training images."""
    std: tuple[Annotated[float, msgspec.Meta(gt=0, le=10)], ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std need one number a channel each: set both or neither")


@dataclass(frozen=True)
class Draw:
    """One operation's source of numbers at one step."""

    key: int
    slots: Tensor
    fill: Tensor

    def chance(self, p: float) -> Tensor:
        """bool [n], true with probability `p`."""
        return seeding.uniform(self.key, self.slots)[0] < p

    def integers(self, low: int, high: int, draws: int) -> Tensor:
        """int64 [draws, n] in [low, high]."""
        return seeding.integers(self.key, self.slots, low, high, draws)


def flip(draw: Draw, images: Tensor, p: Share = 0.5) -> Tensor:
    """Mirror left to right with probability `p`."""
    return ops.flip(images, draw.chance(p))


def crop(draw: Draw, images: Tensor, padding: Size, mode: Literal["zero", "reflect"] = "zero") -> Tensor:
    """Pad by `padding` pixels on every side, cut the original size at a random place."""
    down, right = draw.integers(-padding, padding, 2)
    return ops.crop(images, down, right, mode)


def cutout(draw: Draw, images: Tensor, size: Size) -> Tensor:
    """Fill a square of `size` pixels, centred on a random pixel, with the mean colour (black, where the mean is
    negative)."""
    h, w = images.shape[2:]
    top = draw.integers(0, h - 1, 2)[0] - size // 2
    left = draw.integers(0, w - 1, 2)[1] - size // 2
    return ops.cutout(images, top, left, size, draw.fill)


OPERATIONS: dict[str, Callable[..., Tensor]] = {"flip": flip, "crop": crop, "cutout": cutout}


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """`"crop(4, reflect)"` to `("crop", {"padding": 4, "mode": "reflect"})`: literals and bare words only."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        name = call.func.id  # type: ignore[attr-defined]
        args = [_literal(arg) for arg in call.args]
        keywords = {str(keyword.arg): _literal(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, AttributeError):
        raise UserError(f"augment.ops: cannot read {text!r}: write a name and its numbers, such as crop(4)") from None
    if name not in OPERATIONS:
        raise UserError(f"augment.ops: unknown operation {name!r}{near_miss(name, OPERATIONS)}")
    return name, _bind(text, OPERATIONS[name], args, keywords)


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _bind(text: str, operation: Callable[..., Tensor], args: list[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(operation)
    signature = signature.replace(parameters=list(signature.parameters.values())[2:])
    hints = get_type_hints(operation, include_extras=True)
    try:
        bound = signature.bind(*args, **keywords).arguments
        return {name: msgspec.convert(value, hints[name]) for name, value in bound.items()}
    except (TypeError, msgspec.ValidationError) as error:
        usage = ", ".join(str(parameter.name) for parameter in signature.parameters.values())
        raise UserError(f"augment.ops: {text!r}: {error}; usage: {operation.__name__}({usage})") from None


@dataclass
class Pipeline:
    """uint8 images [n, C, H, W] to normalised float32, augmented when a step is given."""

    operations: list[tuple[str, dict[str, Any]]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    device: torch.device
    _mean: Tensor = field(init=False)
    _std: Tensor = field(init=False)
    _fill: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._mean = torch.tensor(self.mean, device=self.device)
        self._std = torch.tensor(self.std, device=self.device)
        self._fill = (self._mean * 255).round().clamp(0, 255).to(torch.uint8)

    def augment(self, images: Tensor, step: int, slots: Tensor) -> Tensor:
        """uint8 in, uint8 out; `slots` int64 [n] are the images' places in the global batch."""
        for place, (name, arguments) in enumerate(self.operations):
            draw = Draw(seeding.key(self.seed, f"augment/{place}/{name}", step), slots, self._fill)
            images = OPERATIONS[name](draw, images, **arguments)
        return images

    def normalise(self, images: Tensor) -> Tensor:
        """What every image goes through, in training and in evaluation alike."""
        return ops.normalise(images, self._mean, self._std)


def check(config: Augment, image_shape: tuple[int, int, int]) -> list[tuple[str, dict[str, Any]]]:
    """The parsed operations, refused where they cannot work on images of this shape."""
    channels, height, width = image_shape
    if config.mean and len(config.mean) != channels:
        raise UserError(f"augment.mean has {len(config.mean)} numbers, the images have {channels} channels")
    operations = [parse(text) for text in config.ops]
    for name, arguments in operations:
        size = arguments.get("padding", arguments.get("size", 0))
        if size >= min(height, width):
            raise UserError(f"augment.ops: {name}({size}) is too much for images of {height}x{width}")
    return operations
