"""The architectures that a recipe's [model] table can name: built, made narrower and grouped whichever it is."""

from __future__ import annotations

from typing import Any

import torch
from msgspec import structs
from torch import nn

from weightclass.config import to_setting, to_tree
from weightclass.model.init import initialise
from weightclass.model.mobilenet import MobileNetV2, MobileNetV2Config
from weightclass.model.norm import GroupBatchNorm2d
from weightclass.model.resnet import ResNet, ResNetConfig

Network = ResNetConfig | MobileNetV2Config


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
    kind: Any = ResNet if isinstance(config, ResNetConfig) else MobileNetV2
    with torch.device("meta"):
        model = kind(config, image_shape, classes)
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
    stem, *channels = (max(round(each * width), 1) for each in (config.stem_channels, *config.channels))
    return structs.replace(config, channels=tuple(channels), stem_channels=stem if config.stem_channels else 0)


def settings(wanted: Network, base: Network) -> list[str]:
    """What makes `wanted` of a recipe's `base`: model.blocks=2,2 and so on."""
    before = to_tree(base) if type(wanted) is type(base) else to_tree(type(wanted)()) | {"name": ""}
    return [to_setting(f"model.{key}", value) for key, value in to_tree(wanted).items() if value != before[key]]


def group_norms(model: nn.Module, group: int) -> None:
    """Let every batch norm take its training statistics over `group` images at a time; 0: the whole batch."""
    for module in model.modules():
        if isinstance(module, GroupBatchNorm2d):
            module.group = group or None
