"""The paper's network written out by hand, plainly: no config, no in-place operations, no shape arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PlainBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, skip_kernel: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel, 1, padding=(kernel - 1) // 2, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride == 2 or inputs != outputs:
            skip = nn.Conv2d(inputs, outputs, skip_kernel, stride, padding=(skip_kernel - 1) // 2, bias=False)
            self.shortcut = nn.Sequential(skip, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.bn1(self.conv1(x)))
        second = self.bn2(self.conv2(first))
        return torch.relu(second + self.shortcut(x))


class PlainResNet(nn.Module):
    def __init__(
        self,
        *,
        blocks: list[int],
        channels: list[int],
        kernels: list[int],
        skip_kernels: list[int],
        pool: int,
        features: int,
        image_channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(image_channels, channels[0], 3, 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.count = len(blocks)
        inputs = channels[0]
        for i in range(self.count):
            layer = nn.Sequential()
            for j in range(blocks[i]):
                stride = 2 if i > 0 and j == 0 else 1
                layer.append(PlainBlock(inputs, channels[i], kernels[i], skip_kernels[i], stride))
                inputs = channels[i]
            setattr(self, f"layer{i + 1}", layer)
        self.pool = nn.AvgPool2d(pool)
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        for i in range(self.count):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.linear(torch.flatten(self.pool(x), 1))
