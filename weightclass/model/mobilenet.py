"""MobileNetV2 for small images: inverted residuals with linear bottlenecks (Sandler et al. 2018).

Against the paper's network for 224x224 images, the stem and the 24-channel layer keep the map: a 32x32 image ends as
4x4.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from weightclass.config import Table
from weightclass.errors import UserError
from weightclass.model.blocks import InvertedResidual, relu6
from weightclass.model.dropout import HashDropout
from weightclass.model.norm import GroupBatchNorm2d

STEM, HEAD = 32, 1280
# A layer's expansion, channels, blocks and first stride: the paper's Table 2
LAYERS = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
LINEAR_STD = 0.01  # of the linear layer's first weights, as torchvision has it
SMALLEST = 5  # pixels a side: three times halved (5, 3, 2, 1), no map of one pixel is halved again


class MobileNetV2Config(Table, kw_only=True, tag_field="name", tag="mobilenetv2"):
    """The recipe's [model] table: 2,236,682 parameters on CIFAR-10."""

    cure: ClassVar[str] = "use a smaller model.width"

    width: Annotated[float, msgspec.Meta(gt=0, le=16)] = 1.0
    """Times every layer's channels, to the nearest multiple of 8; the last convolution's 1280 only grow."""
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Share of the linear layer's inputs that a training step drops."""


def widened(channels: int, width: float) -> int:
    """`channels` times `width` as the authors round: to a multiple of 8, at least 8, never below nine tenths."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


class MobileNetV2(nn.Module):
    """Normalised float images [n, C, H, W] to logits [n, classes]. Raises UserError for images that are too small."""

    def __init__(self, config: MobileNetV2Config, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        images, height, width = image_shape
        if min(height, width) < SMALLEST:
            raise UserError(
                f"model.name = mobilenetv2: {height}x{width} images are too small, for it halves the map three times; "
                f"use images of {SMALLEST}x{SMALLEST} at least, or model.name=resnet with fewer layers"
            )
        inputs, features = widened(STEM, config.width), widened(HEAD, max(config.width, 1))
        self.config = config
        self.conv1 = nn.Conv2d(images, inputs, 3, padding=1, bias=False)
        self.bn1 = GroupBatchNorm2d(inputs)
        self.layer_names = [f"layer{i}" for i in range(1, len(LAYERS) + 1)]
        for name, (expansion, channels, blocks, stride) in zip(self.layer_names, LAYERS, strict=True):
            outputs = widened(channels, config.width)
            first = InvertedResidual(inputs, outputs, expansion, stride)
            rest = [InvertedResidual(outputs, outputs, expansion, 1) for _ in range(blocks - 1)]
            self.add_module(name, nn.Sequential(first, *rest))
            inputs = outputs
        self.conv2 = nn.Conv2d(inputs, features, 1, bias=False)
        self.bn2 = GroupBatchNorm2d(features)
        self.dropout = HashDropout(config.dropout, features) if config.dropout else nn.Identity()
        self.linear = nn.Linear(features, classes)

    @torch.no_grad()
    def settle(self) -> None:
        """What a fresh network has of its own: with 1280 inputs, Kaiming's logits would be too large to learn from."""
        self.linear.weight.mul_(LINEAR_STD / math.sqrt(2 / self.linear.out_features))

    def forward(self, images: Tensor) -> Tensor:
        x = relu6(self.bn1(self.conv1(images)))
        for name in self.layer_names:
            for block in self.get_submodule(name).children():  # block by block: a Sequential would hold its input
                x = block(x)
        x = relu6(self.bn2(self.conv2(x)))
        return self.linear(self.dropout(x.mean((2, 3))))
