"""The network of Keller Jordan's airbench: a frozen whitening stem, plain convolutions, nothing a short training does
not need (arXiv 2404.00498; github.com/KellerJordan/cifar10-airbench, airbench94_muon.py and airbench96.py)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weightclass.config import Table
from weightclass.errors import UserError
from weightclass.model.blocks import Recomputed
from weightclass.model.norm import GroupBatchNorm2d
from weightclass.model.resnet import ACTIVATIONS, Size, per_layer

NORM = {"eps": 1e-12, "momentum": 0.4}  # running statistics of the last few steps, for weights move fast

Kernel = Annotated[int, msgspec.Meta(ge=0, le=31)]


class AirbenchConfig(Table, kw_only=True, tag_field="name", tag="airbench"):
    """The recipe's [model] table. The defaults are airbench94's network: 1.97 M parameters on CIFAR-10."""

    cure: ClassVar[str] = "use narrower model.channels"

    channels: tuple[Size, ...] = (64, 256, 256)
    """Channels a layer; each layer halves the map, behind its first convolution."""
    convs: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    """3x3 convolutions a layer."""
    depthwise: Kernel | tuple[Kernel, ...] = 0
    """Kernel, odd, of a depthwise convolution before each of a layer's, which are 1x1 then (Howard et al. 2017); 0:
    none. One for all layers, or one a layer."""
    residual: bool = False
    """Add what a layer's first convolution came to before its last activation (airbench96, of 3 `convs`)."""
    whiten: Annotated[int, msgspec.Meta(ge=1, le=5)] = 2
    """Kernel of the stem, which is not trained: patches of that size along their principal axes and against them, at
    equal variance; 0 pixels of padding."""
    whiten_bias: bool = True
    """Give the stem a bias, which is trained. Without, no gradient is needed below the first layer's convolution, and a
    step of a small network takes four fifths of the time."""
    activation: Literal["relu", "gelu", "silu"] = "gelu"

    def __post_init__(self) -> None:
        if not self.channels:
            raise ValueError("channels is empty: each layer needs its number")
        kernels = per_layer(self.depthwise, len(self.channels))
        if len(kernels) != len(self.channels):
            raise ValueError(
                f"depthwise has {len(kernels)} entries for {len(self.channels)} layers: write one each, or one"
            )
        if even := [size for size in kernels if size and size % 2 == 0]:
            raise ValueError(f"depthwise = {even[0]} is even and would shift the map half a pixel: use {even[0] + 1}")
        if self.residual and self.convs < 2:
            raise ValueError("residual adds around the convolutions after a layer's first: set convs to 2 or more")


class Layer(Recomputed):
    """act(norm(pool(conv(x)))), then act(norm(conv(x))) as often as asked."""

    def __init__(self, config: AirbenchConfig, inputs: int, outputs: int, depthwise: int) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * config.convs
        convs = [_conv(a, b, depthwise) for a, b in pairwise(widths)]
        self.convs, self.norms = (
            nn.ModuleList(convs),
            nn.ModuleList(_norm(outputs, folds=i > 0) for i in range(config.convs)),
        )
        self.pool = nn.MaxPool2d(2)
        self.residual, self.activation = config.residual, ACTIVATIONS[config.activation]

    def _compute(self, x: Tensor) -> Tensor:
        first = None
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x) if first is not None else self.pool(conv(x))
            x = norm(x)
            x = x + first if self.residual and first is not None and conv is self.convs[-1] else x
            x = self.activation(x)
            first = x if first is None else first
        return x


def _conv(inputs: int, outputs: int, depthwise: int) -> nn.Module:
    if not depthwise:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    each = nn.Conv2d(inputs, inputs, depthwise, padding=depthwise // 2, groups=inputs, bias=False)
    return nn.Sequential(each, nn.Conv2d(inputs, outputs, 1, bias=False))


def _pass_each(depthwise: nn.Conv2d) -> None:
    """Each channel as it is, plus a random filter of norm 1/2."""
    weight, middle = depthwise.weight, depthwise.weight.shape[-1] // 2
    weight.div_(2 * weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    weight[:, 0, middle, middle] += 1


def _norm(channels: int, folds: bool) -> nn.Module:
    """Its scales stay 1: the next convolution has its own. One behind the pool could be folded, but OpenVINO would then
    take the pool after GELU, which does not rise everywhere (2026.4, CPU)."""
    norm = GroupBatchNorm2d(channels, folds)
    norm.eps, norm.momentum = NORM["eps"], NORM["momentum"]
    norm.weight.requires_grad_(False)
    return norm


class Airbench(nn.Module):
    """Normalised float images [n, C, H, W] to logits [n, classes]. Raises UserError for images that are too small."""

    def __init__(self, config: AirbenchConfig, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        images, side = image_shape[0], min(image_shape[1:])
        if (side - config.whiten + 1) >> len(config.channels) < 1:
            raise UserError(
                f"model.channels: {image_shape[1]}x{image_shape[2]} images are too small for {len(config.channels)} "
                "layers, each of which halves the map: use fewer entries"
            )
        self.config = config
        stem = 2 * images * config.whiten**2
        self.conv1 = nn.Conv2d(images, stem, config.whiten, bias=config.whiten_bias)
        self.conv1.weight.requires_grad_(False)
        self.layer_names = [f"layer{i}" for i in range(1, len(config.channels) + 1)]
        depthwise = per_layer(config.depthwise, len(config.channels))
        for i, (inputs, outputs) in enumerate(pairwise((stem, *config.channels))):
            self.add_module(self.layer_names[i], Layer(config, inputs, outputs, depthwise[i]))
        self.linear = nn.Linear(config.channels[-1], classes, bias=False)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, images: Tensor) -> Tensor:
        x = self.activation(self.conv1(images))
        for name in self.layer_names:
            x = self.get_submodule(name)(x)
        return self.linear(F.max_pool2d(x, x.shape[2:]).flatten(1))

    @torch.no_grad()
    def settle(self) -> None:
        """What a fresh network has of its own: convolutions begin by passing inputs on, logits near zero."""
        convs = [m for name in self.layer_names for m in self.get_submodule(name).modules() if isinstance(m, nn.Conv2d)]
        for conv in convs:
            if conv.groups > 1:
                _pass_each(conv)
            else:
                conv.weight.mul_((conv.out_channels / (6 * conv.in_channels)) ** 0.5)  # to torch's: 1 / (3 fan_in)
                nn.init.dirac_(conv.weight[: conv.in_channels])
        self.linear.weight.mul_((self.linear.out_features / 2) ** 0.5 / self.linear.in_features)

    @torch.no_grad()
    def acquaint(self, pieces: Iterable[Tensor]) -> None:
        """Set the stem by normalised training images, [n, C, H, W] a piece: eigenvectors of their patches' covariance,
        each divided by the root of its eigenvalue (+ 5e-4), and the same negated. On the CPU, in float64."""
        covariance, count = torch.zeros(()), 0
        for images in pieces:
            patches = F.unfold(images.cpu().double(), self.config.whiten).transpose(1, 2).flatten(0, 1)  # [n, C * area]
            covariance, count = covariance + patches.T @ patches, count + len(patches)
        values, vectors = torch.linalg.eigh(covariance / count)
        lean = torch.arange(1, len(vectors) + 1).double() @ vectors
        vectors = vectors * torch.where(lean < 0, -1, 1)  # of each axis' two directions the same one, everywhere
        axes = (vectors / (values + 5e-4).sqrt()).T.reshape(-1, *self.conv1.weight.shape[1:])
        self.conv1.weight.copy_(torch.cat([axes, -axes]))
