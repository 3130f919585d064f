"""From readable text in a recipe, `["crop(4)", "flip", "cutout(8)"]`, to a function of (batch, step).

Each operation's draws hang on (seed, operation and its place, step, slot) alone, those of `altflip` on the image and
the epoch instead of the last two: whatever the device, the number of ranks or micro-batches, the same image at the same
step gets the same picture.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_type_hints

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from weightclass import seeding
from weightclass.augment import ops
from weightclass.augment.operations import COLOURED, MIXES, OPERATIONS, PREPARED, Draw, Setting
from weightclass.batching import Batch
from weightclass.config import Table, near_miss
from weightclass.errors import UserError

FUNCTIONS = OPERATIONS | MIXES
_NOT_GIVEN = ("draw", "images", "targets")
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


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """`"crop(4)"` to `("crop", {"padding": 4, "mode": "zero"})`: literals and bare words only."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        name = call.func.id  # type: ignore[attr-defined]
        args = [_literal(arg) for arg in call.args]
        keywords = {str(keyword.arg): _literal(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError, MemoryError):
        text = text if len(text) < 80 else f"{text[:80]}..."
        raise UserError(f"augment.ops: cannot read {text!r}: write a name and its numbers, such as crop(4)") from None
    if name not in FUNCTIONS:
        raise UserError(f"augment.ops: unknown operation {name!r}{near_miss(name, FUNCTIONS)}")
    return name, _bind(text, FUNCTIONS[name], args, keywords)


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _bind(text: str, operation: Callable[..., Any], args: list[Any], keywords: dict[str, Any]) -> dict[str, Any]:
    signature, hints = inspect.signature(operation), get_type_hints(operation, include_extras=True)
    given = [parameter for name, parameter in signature.parameters.items() if name not in _NOT_GIVEN]
    signature = signature.replace(parameters=given)
    try:
        bound = signature.bind(*args, **keywords)
        bound.apply_defaults()
        return {name: msgspec.convert(value, hints[name]) for name, value in bound.arguments.items()}
    except (TypeError, msgspec.ValidationError) as error:
        usage = ", ".join(str(parameter.name) for parameter in signature.parameters.values())
        raise UserError(f"augment.ops: {text!r}: {error}; usage: {operation.__name__}({usage})") from None


@dataclass
class Pipeline:
    """uint8 images [n, C, H, W] augmented, and normalised to float32."""

    operations: list[tuple[str, dict[str, Any]]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    device: torch.device
    image_shape: tuple[int, int, int]
    classes: int
    compile: bool = False

    def __post_init__(self) -> None:
        self._mean = torch.tensor(self.mean, device=self.device)
        self._std = torch.tensor(self.std, device=self.device)
        self._fill = (self._mean * 255).round().clamp(0, 255).to(torch.uint8)
        self._prepared = [self._prepare(place, *operation) for place, operation in enumerate(self.operations)]
        self._compiled = torch.compile(self.apply, dynamic=False) if self.compile else None

    def _prepare(self, place: int, name: str, arguments: dict[str, Any]) -> Any:
        setting = Setting(self.seed, place, *self.image_shape[1:], self.device)
        return PREPARED[name](setting, **arguments) if name in PREPARED else None

    def augment(self, batch: Batch, epoch: int, step: int) -> Batch:
        """The batch as the network sees it: images uint8 still, labels float32 [n, classes] where they are mixed."""
        keys = [
            seeding.key(self.seed, f"augment/{place}/{name}", step) for place, (name, _) in enumerate(self.operations)
        ]
        targets = batch.labels
        if any(name in MIXES for name, _ in self.operations):
            targets = F.one_hot(targets, self.classes).float()
        apply, turn = self.apply, epoch
        if self._compiled:  # numbers that differ from step to step are tensors there, or each step would be a new graph
            signed = [key - 2**64 if key >> 63 else key for key in keys]
            *keys, turn = torch.tensor([*signed, epoch]).to(self.device, non_blocking=True)
            apply = self._compiled
        images, targets = apply(batch.images, targets, batch.slots, batch.indices, turn, keys)
        return replace(batch, images=images, labels=targets)

    def apply(
        self,
        images: Tensor,
        targets: Tensor,
        slots: Tensor,
        indices: Tensor,
        epoch: int | Tensor,
        keys: Sequence[int | Tensor],
    ) -> tuple[Tensor, Tensor]:
        """All operations in their order, `keys` (integers, or tensors for a compiled graph) one each."""
        for (name, arguments), key, prepared in zip(self.operations, keys, self._prepared, strict=True):
            draw = Draw(seeding.words(key, slots), slots, indices, epoch, self._fill, prepared)
            if name in MIXES:
                images, targets = MIXES[name](draw, images, targets, **arguments)
            else:
                images = OPERATIONS[name](draw, images, **arguments)
        return images, targets

    def normalise(self, images: Tensor) -> Tensor:
        """What every image goes through, in training and in evaluation alike."""
        return ops.normalise(images, self._mean, self._std)


def check(config: Augment, image_shape: tuple[int, int, int]) -> list[tuple[str, dict[str, Any]]]:
    """The parsed operations, refused where they cannot work on images of this shape."""
    channels, height, width = image_shape
    if config.mean and len(config.mean) != channels:
        raise UserError(f"augment.mean has {len(config.mean)} numbers, the images have {channels} channels")
    operations = [parse(text) for text in config.ops]
    for text, (name, given) in zip(config.ops, operations, strict=True):
        size = given.get("padding", given.get("size", given.get("pixels", 0)))
        room = {"translate_x": width, "translate_y": height}.get(name, min(height, width))
        if size >= room or (name == "perspective" and room < 2):
            raise UserError(f"augment.ops: {text} is too much for images of {height}x{width}")
        if given.get("magnitude", 0) >= given.get("bins", 1) and name == "randaugment":
            raise UserError(f"augment.ops: {text}: magnitude {given['magnitude']} must be below bins, {given['bins']}")
        if given.get("least", 0) > given.get("most", 1):
            raise UserError(f"augment.ops: {text}: least {given['least']:g} must not be above most, {given['most']:g}")
        wanted = (3,) if name in COLOURED else (1, 3) if name == "contrast" else (channels,)
        if channels not in wanted:
            count = " or ".join(map(str, wanted))
            raise UserError(
                f"augment.ops: {name} needs images of {count} channels, these have {channels}: leave it out"
            )
    return operations
