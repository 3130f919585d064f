"""Inverted residuals in any number, width and kernel: more accuracy a parameter than dense blocks, at more time a MAC.

MBConv blocks as in EfficientNet (Tan & Le 2019), for small images: the stem and the first layer keep the map, each
later layer halves it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from torch import Tensor, nn

from weightclass.config import Table
from weightclass.model.blocks import InvertedResidual
from weightclass.model.norm import GroupBatchNorm2d
from weightclass.model.resnet import ACTIVATIONS, Size, check_layers, map_sizes, per_layer


class MBConvConfig(Table, kw_only=True, tag_field="name", tag="mbconv"):
    """The recipe's [model] table. The defaults: 71,580 parameters on CIFAR-10."""

    cure: ClassVar[str] = "use fewer model.blocks or narrower model.channels"

    blocks: tuple[Size, ...] = (2, 3, 3)
    """Blocks a layer; the first layer keeps the map, each later one halves it."""
    channels: tuple[Size, ...] = (16, 24, 40)
    """Channels between the blocks of a layer."""
    expansion: Size | tuple[Size, ...] = 4
    """Times as many inside a block: one for all layers, or one a layer."""
    kernels: Size | tuple[Size, ...] = 3
    """Kernel of the depthwise convolutions, odd: one for all layers, or one a layer."""
    se_reduction: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 4
    """How many times narrower than `channels` a block's squeeze is; 0: no squeeze and excitation."""
    activation: Literal["relu", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish"] = "silu"
    zero_init_residual: bool = False
    """Start every block as its shortcut (last norm's scale zero)."""

    def __post_init__(self) -> None:
        check_layers(self, "expansion", "kernels")


class MBConvNet(nn.Module):
    """Normalised float images [n, C, H, W] to logits [n, classes]. Raises UserError for images that are too small."""

    def __init__(self, config: MBConvConfig, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        layers = len(config.blocks)
        map_sizes(image_shape, layers)
        self.config, self.activation = config, ACTIVATIONS[config.activation]
        self.conv1 = nn.Conv2d(image_shape[0], config.channels[0], 3, padding=1, bias=False)
        self.bn1 = GroupBatchNorm2d(config.channels[0])
        self.layer_names = [f"layer{i}" for i in range(1, layers + 1)]
        inputs, kernels = config.channels[0], per_layer(config.kernels, layers)
        for i, name in enumerate(self.layer_names):
            width, expansion = config.channels[i], per_layer(config.expansion, layers)[i]
            blocks = []
            for j in range(config.blocks[i]):
                shape = inputs, width, expansion, 2 if i and not j else 1, kernels[i]
                blocks.append(InvertedResidual(*shape, self.activation, expansion * config.se_reduction))
                inputs = width
            self.add_module(name, nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.conv1(images)))
        for name in self.layer_names:
            for block in self.get_submodule(name).children():  # block by block: a Sequential would hold its input
                x = block(x)
        return self.linear(self.activation(x).mean((2, 3)))

    def settle(self) -> None:
        """What a fresh network has of its own: blocks that start as their shortcuts where the config asks for it."""
        for block in self.modules() if self.config.zero_init_residual else ():
            if isinstance(block, InvertedResidual) and block.residual:
                nn.init.zeros_(block.get_parameter("project.1.weight"))
