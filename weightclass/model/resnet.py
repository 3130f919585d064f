"""The paper's family of residual networks: any depth, width and kernels, checked before a weight is allocated.

3x3 stem, N layers of basic blocks of which all but the first halve the map, a pool, one linear layer
(section 3 of the paper; He et al. 2016 for CIFAR). Parameter names are those of the well-known CIFAR ResNets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from weightclass.config import Table
from weightclass.errors import UserError
from weightclass.model.dropout import HashDropout
from weightclass.model.init import initialise
from weightclass.model.norm import GroupBatchNorm2d, still

Size = Annotated[int, msgspec.Meta(ge=1, le=65_536)]

# In place where the backward pass needs the output only: fewer bytes moved, which is what a CPU waits for.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": partial(F.relu, inplace=True),
    "leaky_relu": partial(F.leaky_relu, inplace=True),
    "elu": partial(F.elu, inplace=True),
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
}


class ResNetConfig(Table, kw_only=True, tag_field="name", tag="resnet"):
    """The recipe's [model] table. The defaults are the paper's small network: 701,466 parameters on CIFAR-10."""

    blocks: tuple[Size, ...] = (2, 2, 2, 2)
    """Residual blocks a layer (the paper's B); the first layer keeps the map, each later one halves it."""
    channels: tuple[Size, ...] = (16, 32, 64, 128)
    """Channels a layer (C); as many entries as `blocks`. The stem has the first."""
    kernels: Size | tuple[Size, ...] = 3
    """Kernel of both convolutions of a block (F), odd: one for all layers, or one a layer."""
    skip_kernels: Size | tuple[Size, ...] = 1
    """Kernel of the projection shortcut (K), odd: one for all layers, or one a layer."""
    stem_kernel: Size = 3
    """Kernel of the first convolution, odd."""
    downsample: Literal["stride", "avgpool", "maxpool"] = "stride"
    """How a layer halves its map: strided convolutions, or a 2x2 pool before unstrided ones, on both paths."""
    pool: str = "avg(4)"
    """Before the linear layer (P): avg(P), max(P) or global. A last map larger than P widens the linear layer."""
    norm: Literal["batch", "none"] = "batch"
    """Batch norm after every convolution, or none (the convolutions then have a bias)."""
    activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish"] = "relu"
    """After the stem, inside each block and after its sum."""
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Share of the linear layer's inputs that a training step drops."""
    zero_init_residual: bool = False
    """Start every block as its shortcut (last norm's scale, or last convolution, zero): helps short schedules."""

    def __post_init__(self) -> None:
        layers = len(self.blocks)
        if layers == 0 or layers != len(self.channels):
            raise ValueError(f"blocks has {layers} and channels {len(self.channels)} entries: each layer needs one")
        for key in ("kernels", "skip_kernels", "stem_kernel"):
            value = getattr(self, key)
            if not isinstance(value, int) and len(value) != layers:
                raise ValueError(f"{key} has {len(value)} entries for {layers} layers: write one each, or one number")
            even = [kernel for kernel in _per_layer(value, layers) if kernel % 2 == 0]
            if even:
                raise ValueError(f"{key} = {even[0]} is even and would shift the map half a pixel: use {even[0] + 1}")
        _parse_pool(self.pool)


def _per_layer(value: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    return (value,) * layers if isinstance(value, int) else tuple(value)


def _parse_pool(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(avg|max)\(\s*([1-9]\d*)\s*\)", text)
    if match:
        return match[1], int(match[2])
    if text != "global":
        raise ValueError(f"pool = {text!r}: write avg(4), max(4), another size, or global")
    return "global", 0


# --- the network -------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Basic block: act(norm(conv(act(norm(conv(x))))) + shortcut(x)).

    The shortcut is a projection where the map or the width changes, whichever way the map is halved.
    """

    recompute: bool = False
    """In training, hold only the input for the backward pass and compute the rest again there: the same numbers."""

    def __init__(self, config: ResNetConfig, inputs: int, outputs: int, kernel: int, skip_kernel: int, *, halve: bool):
        super().__init__()
        conv, norm = _layers(config)
        stride = 2 if halve and config.downsample == "stride" else 1
        self.shrink = _shrink(config.downsample if halve else "stride")
        self.conv1 = conv(inputs, outputs, kernel, stride)
        self.bn1 = norm(outputs)
        self.conv2 = conv(outputs, outputs, kernel)
        self.bn2 = norm(outputs)
        projection = (conv(inputs, outputs, skip_kernel, stride), norm(outputs))
        self.shortcut = nn.Sequential(*(projection if halve or inputs != outputs else ()))
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        if not (self.recompute and self.training):
            return self._compute(x)
        # A compiled graph moves the running statistics once however often it computes, and takes no contexts.
        contexts: dict[str, Any] = {"context_fn": lambda: (nullcontext(), still(self))}
        contexts = {} if torch.compiler.is_compiling() else contexts
        return checkpoint(self._compute, x, use_reentrant=False, preserve_rng_state=False, **contexts)

    def _compute(self, x: Tensor) -> Tensor:
        x = self.shrink(x)
        y = self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.activation(y)


class StridedPointwise(nn.Conv2d):
    """A strided 1x1 convolution as a choice of pixels and a dense one: the same numbers.

    oneDNN's own kernel writes beyond its workspace, and so crashes, where a vector holds more channels than there are
    (channels last, backward, CPU; its issue 6035).
    """

    def forward(self, input: Tensor) -> Tensor:
        down, right = self.stride
        return F.conv2d(input[:, :, ::down, ::right], self.weight, self.bias)


def _layers(config: ResNetConfig) -> tuple[Callable[..., nn.Module], Callable[[int], nn.Module]]:
    """Constructors of a same-padded convolution and of its norm."""
    normed = config.norm == "batch"

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        kind = StridedPointwise if kernel == 1 < stride and inputs < 16 else nn.Conv2d
        return kind(inputs, outputs, kernel, stride, padding=kernel // 2, bias=not normed)

    return conv, GroupBatchNorm2d if normed else lambda channels: nn.Identity()


def _shrink(downsample: str) -> nn.Module:
    # ceil_mode: an odd side halves upwards, as it does under a strided convolution
    kinds = {"avgpool": nn.AvgPool2d, "maxpool": nn.MaxPool2d}
    return kinds[downsample](2, ceil_mode=True) if downsample in kinds else nn.Identity()


class ResNet(nn.Module):
    """Normalised float images [n, C, H, W] to logits [n, classes]. Raises UserError for a shape that cannot work."""

    def __init__(self, config: ResNetConfig, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        features = config.channels[-1] * _pooled_area(config, image_shape)
        self.config = config
        conv, norm = _layers(config)
        self.conv1 = conv(image_shape[0], config.channels[0], config.stem_kernel)
        self.bn1 = norm(config.channels[0])
        self.layer_names = [f"layer{i}" for i in range(1, len(config.blocks) + 1)]
        for i, name in enumerate(self.layer_names):
            self.add_module(name, _layer(config, i))
        self.dropout = HashDropout(config.dropout, features) if config.dropout else nn.Identity()
        self.linear = nn.Linear(features, classes)
        self.activation = ACTIVATIONS[config.activation]
        self.pool = _parse_pool(config.pool)

    def forward(self, images: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.conv1(images)))
        for name in self.layer_names:
            for block in self.get_submodule(name).children():  # block by block: a Sequential would hold its input
                x = block(x)
        return self.linear(self.dropout(self._pool(x).flatten(1)))

    def _pool(self, x: Tensor) -> Tensor:
        kind, size = self.pool
        if kind == "global":
            return x.mean((2, 3))
        return F.avg_pool2d(x, size) if kind == "avg" else F.max_pool2d(x, size)


def _layer(config: ResNetConfig, i: int) -> nn.Sequential:
    layers, width = len(config.blocks), config.channels[i]
    kernel, skip_kernel = _per_layer(config.kernels, layers)[i], _per_layer(config.skip_kernels, layers)[i]
    inputs = config.channels[max(i - 1, 0)]
    first = Block(config, inputs, width, kernel, skip_kernel, halve=i > 0)
    rest = [Block(config, width, width, kernel, skip_kernel, halve=False) for _ in range(config.blocks[i] - 1)]
    return nn.Sequential(first, *rest)


def _pooled_area(config: ResNetConfig, image_shape: tuple[int, int, int]) -> int:
    """Pixels that are left of the last map after `pool`; refuses images that are too small for the network."""
    _, height, width = image_shape
    images, layers = f"{height}x{width} images", len(config.blocks)
    for layer in range(1, layers):
        if min(height, width) < 2:
            raise UserError(
                f"model.blocks: {images} are too small for {layers} layers: layer {layer + 1} would halve a map of "
                f"{height}x{width}; use at most {layer} entries in model.blocks and model.channels"
            )
        height, width = (height + 1) // 2, (width + 1) // 2
    kind, size = _parse_pool(config.pool)
    if kind == "global":
        return 1
    if size > min(height, width):
        raise UserError(
            f"model.pool = {config.pool} is larger than the last map, {height}x{width} for {images} and {layers} "
            f"layers; use global, {kind}({min(height, width)}) or fewer layers"
        )
    return (height // size) * (width // size)


def build(
    config: ResNetConfig,
    image_shape: tuple[int, int, int],
    classes: int,
    seed: int | None = None,
    device: torch.device | str = "cpu",
) -> ResNet:
    """The network for images of `image_shape` (C, H, W), its weights a function of `seed` alone on any device.

    Without a seed it stays on the meta device: shapes without memory, enough to weigh it. Raises UserError for a
    shape that cannot work.
    """
    with torch.device("meta"):
        model = ResNet(config, image_shape, classes)
    if seed is None:
        return model
    model.to_empty(device="cpu")
    initialise(model, seed)
    if config.zero_init_residual:
        for block in model.modules():
            if isinstance(block, Block):
                last = block.bn2 if config.norm == "batch" else block.conv2
                nn.init.zeros_(last.get_parameter("weight"))
    return model.to(device)


def group_norms(model: nn.Module, group: int) -> None:
    """Let every batch norm take its training statistics over `group` images at a time; 0: the whole batch."""
    for module in model.modules():
        if isinstance(module, GroupBatchNorm2d):
            module.group = group or None
