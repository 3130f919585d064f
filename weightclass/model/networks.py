"""The architectures that a recipe's [model] table can name: built, made narrower and grouped whichever it is."""

from __future__ import annotations

from typing import Any

import torch
from msgspec import structs
from torch import nn

from weightclass.config import to_setting, to_tree
from weightclass.model.airbench import Airbench, AirbenchConfig
from weightclass.model.init import initialise
from weightclass.model.mbconv import MBConvConfig, MBConvNet
from weightclass.model.mobilenet import MobileNetV2, MobileNetV2Config
from weightclass.model.norm import GroupBatchNorm2d
from weightclass.model.resnet import ResNet, ResNetConfig

Network = ResNetConfig | MobileNetV2Config | AirbenchConfig | MBConvConfig
_KINDS: dict[type, Any] = {ResNetConfig: ResNet, MobileNetV2Config: MobileNetV2, AirbenchConfig: Airbench}
_KINDS[MBConvConfig] = MBConvNet


def build(
    config: Network,
    image_shape: tuple[int, int, int],
    classes: int,
    seed: int | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The network for images of `image_shape` (C, H, W), its weights a function of `seed` alone on any device.

    Without a seed it stays on the meta device: shapes without memory, enough to weigh it. Raises UserError for a
    shape that cannot work.
    """
    with torch.device("meta"):
        model = _KINDS[type(config)](config, image_shape, classes)
    if seed is None:
        return model
    model.to_empty(device="cpu")
    initialise(model, seed)
    model.settle()
    return model.to(device)


def shrink(config: Network, width: float) -> Network:
    """`config` with all channels times `width`, rounded, at least 1 each (MobileNetV2's at least 8: its own rule)."""
    if isinstance(config, MobileNetV2Config):
        return structs.replace(config, width=config.width * width)
    config = structs.replace(config, channels=tuple(max(round(each * width), 1) for each in config.channels))
    if isinstance(config, ResNetConfig) and config.stem_channels:
        return structs.replace(config, stem_channels=max(round(config.stem_channels * width), 1))
    return config


def settings(wanted: Network, base: Network) -> list[str]:
    """What makes `wanted` of a recipe's `base`: model.blocks=2,2 and so on."""
    before = to_tree(base) if type(wanted) is type(base) else to_tree(type(wanted)()) | {"name": ""}
    return [to_setting(f"model.{key}", value) for key, value in to_tree(wanted).items() if value != before[key]]


def group_norms(model: nn.Module, group: int) -> None:
    """Let every batch norm take its training statistics over `group` images at a time; 0: the whole batch."""
    for module in model.modules():
        if isinstance(module, GroupBatchNorm2d):
            module.group = group or None
