"""The paper's family of residual networks: any depth, width and kernels, checked before a weight is allocated.

3x3 stem, N layers of basic blocks of which all but the first halve the map, a pool, one linear layer
(section 3 of the paper; He et al. 2016 for CIFAR). Parameter names are those of the well-known CIFAR ResNets.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from torch import Tensor, nn
from torch.nn import functional as F

from weightclass.config import Table
from weightclass.errors import UserError
from weightclass.model.blocks import Recomputed, SqueezeExcite, StridedPointwise
from weightclass.model.dropout import HashDropout
from weightclass.model.norm import GroupBatchNorm2d

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

    cure: ClassVar[str] = "use fewer model.blocks or narrower model.channels"

    blocks: tuple[Size, ...] = (2, 2, 2, 2)
    """Residual blocks a layer (the paper's B); the first layer keeps the map, each later one halves it."""
    channels: tuple[Size, ...] = (16, 32, 64, 128)
    """Channels a layer (C); as many entries as `blocks`."""
    stem_channels: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 0
    """Channels of the first convolution; 0: the first layer's."""
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
    """After the stem, inside each block and after its sum (with `preactivation`: after each norm)."""
    preactivation: bool | Literal["blocks"] = False
    """Norm and activation before each convolution instead of after it, and once more before the pool. "blocks": inside
    the blocks alone; stem and projections keep their norms, and the activation before the pool has none."""
    se: Literal["none", "stem", "blocks"] = "none"
    """Squeeze and excitation: nowhere, once after the stem, or in every block before its sum."""
    se_reduction: Size = 16
    """How many times narrower than the map its squeeze is."""
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Share of the linear layer's inputs that a training step drops."""
    zero_init_residual: bool = False
    """Start every block as its shortcut (last norm's scale, or last convolution, zero): helps short schedules."""

    def __post_init__(self) -> None:
        check_layers(self, "kernels", "skip_kernels", "stem_kernel")
        _parse_pool(self.pool)

    @property
    def stem(self) -> int:
        """Channels of the first convolution."""
        return self.stem_channels or self.channels[0]


def check_layers(config: Any, *keys: str) -> None:
    """Raise ValueError unless blocks, channels and `keys` have one entry a layer (or `keys` one number for all), and
    what of these is a kernel is odd."""
    layers = len(config.blocks)
    if layers == 0 or layers != len(config.channels):
        raise ValueError(f"blocks has {layers} and channels {len(config.channels)} entries: each layer needs one")
    for key in keys:
        value = getattr(config, key)
        if not isinstance(value, int) and len(value) != layers:
            raise ValueError(f"{key} has {len(value)} entries for {layers} layers: write one each, or one number")
        if even := [size for size in per_layer(value, layers) if "kernel" in key and size % 2 == 0]:
            raise ValueError(f"{key} = {even[0]} is even and would shift the map half a pixel: use {even[0] + 1}")


def per_layer(value: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    return (value,) * layers if isinstance(value, int) else tuple(value)


def _parse_pool(text: str) -> tuple[str, int]:
    match = re.fullmatch(r"(avg|max)\(\s*([1-9]\d*)\s*\)", text)
    if match:
        return match[1], int(match[2])
    if text != "global":
        raise ValueError(f"pool = {text!r}: write avg(4), max(4), another size, or global")
    return "global", 0


# --- the network -------------------------------------------------------------------------------------------


class Block(Recomputed):
    """Basic block: act(norm(conv(act(norm(conv(x))))) + shortcut(x)).

    The shortcut is a projection where the map or the width changes, whichever way the map is halved.
    """

    def __init__(self, config: ResNetConfig, inputs: int, outputs: int, kernel: int, skip_kernel: int, *, halve: bool):
        super().__init__()
        conv, norm = _layers(config)
        stride = 2 if halve and config.downsample == "stride" else 1
        self.shrink = _shrink(config.downsample if halve else "stride")
        self.conv1 = conv(inputs, outputs, kernel, stride)
        self.bn1 = norm(inputs, folds=False) if config.preactivation else norm(outputs)
        self.conv2 = conv(outputs, outputs, kernel)
        self.bn2 = norm(outputs)
        self.se = SqueezeExcite(outputs, config.se_reduction) if config.se == "blocks" else nn.Identity()
        projection = [conv(inputs, outputs, skip_kernel, stride)]
        projection += [norm(outputs)] if config.preactivation is not True else []
        self.shortcut = nn.Sequential(*(projection if halve or inputs != outputs else ()))
        self.activation = ACTIVATIONS[config.activation]

    def _compute(self, x: Tensor) -> Tensor:
        x = self.shrink(x)
        y = self.se(self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x))))))
        y += self.shortcut(x)
        return self.activation(y)


class PreactivationBlock(Block):
    """conv(act(norm(conv(z)))) + shortcut, z = act(norm(x)): the shortcut is x itself, or a projection of z.

    He et al. 2016 (Identity Mappings); the projection as in the Wide ResNets of Zagoruyko and Komodakis 2016.
    A projection with a norm of its own ("blocks") is of x: the paper's authors' notebook Models/B-93-82.ipynb.
    """

    def _compute(self, x: Tensor) -> Tensor:
        x = self.shrink(x)
        z = self.bn1(x)
        z = self.activation(z.clone() if z is x else z)  # without a norm, in place would change x
        y = self.se(self.conv2(self.activation(self.bn2(self.conv1(z)))))
        y += self.shortcut(z if len(self.shortcut) == 1 else x)  # one: without a norm; none: x itself
        return y


def _layers(config: ResNetConfig) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """Constructors of a same-padded convolution and of its norm."""
    normed = config.norm == "batch"

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        kind = StridedPointwise if kernel == 1 < stride and inputs < 16 else nn.Conv2d
        return kind(inputs, outputs, kernel, stride, padding=kernel // 2, bias=not normed)

    return conv, GroupBatchNorm2d if normed else nn.Identity


def _shrink(downsample: str) -> nn.Module:
    # ceil_mode: an odd side halves upwards, as it does under a strided convolution
    kinds = {"avgpool": nn.AvgPool2d, "maxpool": nn.MaxPool2d}
    return kinds[downsample](2, ceil_mode=True) if downsample in kinds else nn.Identity()


class ResNet(nn.Module):
    """Normalised float images [n, C, H, W] to logits [n, classes]. Raises UserError for a shape that cannot work."""

    def __init__(self, config: ResNetConfig, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        features = config.channels[-1] * pooled_area(config, image_shape)
        self.config = config
        conv, norm = _layers(config)
        self.conv1 = conv(image_shape[0], config.stem, config.stem_kernel)
        whole = config.preactivation is True
        self.bn1 = nn.Identity() if whole else norm(config.stem)
        self.se = SqueezeExcite(config.stem, config.se_reduction) if config.se == "stem" else nn.Identity()
        self.layer_names = [f"layer{i}" for i in range(1, len(config.blocks) + 1)]
        for i, name in enumerate(self.layer_names):
            self.add_module(name, _layer(config, i))
        self.bn_last = norm(config.channels[-1], folds=False) if whole else nn.Identity()
        self.dropout = HashDropout(config.dropout, features) if config.dropout else nn.Identity()
        self.linear = nn.Linear(features, classes)
        self.activation = ACTIVATIONS[config.activation]
        self.pool = _parse_pool(config.pool)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images)
        x = self.se(x if self.config.preactivation is True else self.activation(self.bn1(x)))
        for name in self.layer_names:
            for block in self.get_submodule(name).children():  # block by block: a Sequential would hold its input
                x = block(x)
        x = self.activation(self.bn_last(x)) if self.config.preactivation else x
        return self.linear(self.dropout(self._pool(x).flatten(1)))

    def settle(self) -> None:
        """What a fresh network has of its own: each block starts as its shortcut where the config asks for it."""
        last = "bn2" if self.config.norm == "batch" and not self.config.preactivation else "conv2"
        for block in self.modules() if self.config.zero_init_residual else ():
            if isinstance(block, Block):
                nn.init.zeros_(block.get_parameter(f"{last}.weight"))

    def _pool(self, x: Tensor) -> Tensor:
        kind, size = self.pool
        if kind == "global":
            return x.mean((2, 3))
        return F.avg_pool2d(x, size) if kind == "avg" else F.max_pool2d(x, size)


def _layer(config: ResNetConfig, i: int) -> nn.Sequential:
    layers, width = len(config.blocks), config.channels[i]
    kernel, skip_kernel = per_layer(config.kernels, layers)[i], per_layer(config.skip_kernels, layers)[i]
    inputs = config.channels[i - 1] if i else config.stem
    kind = PreactivationBlock if config.preactivation else Block
    first = kind(config, inputs, width, kernel, skip_kernel, halve=i > 0)
    rest = [kind(config, width, width, kernel, skip_kernel, halve=False) for _ in range(config.blocks[i] - 1)]
    return nn.Sequential(first, *rest)


def map_sizes(image_shape: tuple[int, int, int], layers: int) -> list[tuple[int, int]]:
    """Height and width of each layer's map; refuses images that are too small to be halved so often."""
    sizes = [image_shape[1:]]
    for layer in range(1, layers):
        height, width = sizes[-1]
        if min(height, width) < 2:
            raise UserError(
                f"model.blocks: {image_shape[1]}x{image_shape[2]} images are too small for {layers} layers: layer "
                f"{layer + 1} would halve a map of {height}x{width}; use at most {layer} entries in model.blocks and "
                "model.channels"
            )
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def pooled_area(config: ResNetConfig, image_shape: tuple[int, int, int]) -> int:
    """Pixels that are left of the last map after `pool`; refuses images that are too small for the network."""
    layers = len(config.blocks)
    height, width = map_sizes(image_shape, layers)[-1]
    kind, size = _parse_pool(config.pool)
    if kind == "global":
        return 1
    if size > min(height, width):
        raise UserError(
            f"model.pool = {config.pool} is larger than the last map, {height}x{width} for {image_shape[1]}x"
            f"{image_shape[2]} images and {layers} layers; use global, {kind}({min(height, width)}) or fewer layers"
        )
    return (height // size) * (width // size)
