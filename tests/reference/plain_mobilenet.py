"""MobileNetV2 for CIFAR, width 1, written out by hand: each layer's numbers stand in the table, none is computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# layer, block, inputs, inside, outputs, stride
TABLE = [
    (1, 0, 32, 32, 16, 1),
    (2, 0, 16, 96, 24, 1),
    (2, 1, 24, 144, 24, 1),
    (3, 0, 24, 144, 32, 2),
    (3, 1, 32, 192, 32, 1),
    (3, 2, 32, 192, 32, 1),
    (4, 0, 32, 192, 64, 2),
    (4, 1, 64, 384, 64, 1),
    (4, 2, 64, 384, 64, 1),
    (4, 3, 64, 384, 64, 1),
    (5, 0, 64, 384, 96, 1),
    (5, 1, 96, 576, 96, 1),
    (5, 2, 96, 576, 96, 1),
    (6, 0, 96, 576, 160, 2),
    (6, 1, 160, 960, 160, 1),
    (6, 2, 160, 960, 160, 1),
    (7, 0, 160, 960, 320, 1),
]


class PlainInvertedResidual(nn.Module):
    def __init__(self, inputs: int, inside: int, outputs: int, stride: int) -> None:
        super().__init__()
        if inside != inputs:
            self.expand = nn.Sequential(nn.Conv2d(inputs, inside, 1, bias=False), nn.BatchNorm2d(inside))
        depthwise = nn.Conv2d(inside, inside, 3, stride, padding=1, groups=inside, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(inside))
        self.project = nn.Sequential(nn.Conv2d(inside, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.same = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if hasattr(self, "expand"):
            y = torch.clamp(self.expand(y), 0, 6)
        y = torch.clamp(self.depthwise(y), 0, 6)
        y = self.project(y)
        return x + y if self.same else y


class PlainMobileNetV2(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        for i in range(1, 8):
            setattr(
                self, f"layer{i}", nn.Sequential(*[PlainInvertedResidual(*row[2:]) for row in TABLE if row[0] == i])
            )
        self.conv2 = nn.Conv2d(320, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(self.bn1(self.conv1(x)), 0, 6)
        for i in range(1, 8):
            x = getattr(self, f"layer{i}")(x)
        x = torch.clamp(self.bn2(self.conv2(x)), 0, 6)
        return self.linear(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
