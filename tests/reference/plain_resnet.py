"""The paper's network and its relatives written out by hand, plainly: no config, no in-place operations, no shape
arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PlainBlock(nn.Module):
    """`preactivated`: norm and activation before each convolution; the shortcut stays that of the other kind."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        skip_kernel: int,
        stride: int,
        se_reduction: int = 0,
        preactivated: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=False)
        self.preactivated = preactivated
        self.bn1 = nn.BatchNorm2d(inputs if preactivated else outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel, 1, padding=(kernel - 1) // 2, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.se = PlainSqueezeExcite(outputs, se_reduction) if se_reduction else nn.Identity()
        self.shortcut = nn.Sequential()
        if stride == 2 or inputs != outputs:
            skip = nn.Conv2d(inputs, outputs, skip_kernel, stride, padding=(skip_kernel - 1) // 2, bias=False)
            self.shortcut = nn.Sequential(skip, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.preactivated:
            first = self.conv1(torch.relu(self.bn1(x)))
            return self.se(self.conv2(torch.relu(self.bn2(first)))) + self.shortcut(x)
        first = torch.relu(self.bn1(self.conv1(x)))
        second = self.se(self.bn2(self.conv2(first)))
        return torch.relu(second + self.shortcut(x))


class PlainSqueezeExcite(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, max(1, channels // reduction), kernel_size=1, bias=True)
        self.fc2 = nn.Conv2d(max(1, channels // reduction), channels, kernel_size=1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.fc1(self.squeeze(x)))
        scale = torch.sigmoid(self.fc2(hidden))
        return x * scale.expand_as(x)


class PlainWideBlock(nn.Module):
    """The basic block of Wide ResNets, of two 3x3 convolutions, as their authors drew it."""

    def __init__(self, inputs: int, outputs: int, stride: int, se_reduction: int = 0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, padding=1, bias=False)
        self.se = PlainSqueezeExcite(outputs, se_reduction) if se_reduction else nn.Identity()
        self.same = inputs == outputs and stride == 1
        if not self.same:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn1(x))
        branch = self.se(self.conv2(torch.relu(self.bn2(self.conv1(activated)))))
        if self.same:
            return x + branch
        return self.shortcut(activated) + branch


class PlainWideResNet(nn.Module):
    """Any widths, global average pool; squeeze and excitation in the blocks where `se_reduction` is not 0."""

    def __init__(
        self, blocks: list[int], channels: list[int], stem_channels: int, se_reduction: int = 0, classes: int = 10
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem_channels, 3, 1, padding=1, bias=False)
        inputs, self.count = stem_channels, len(blocks)
        for i in range(self.count):
            layer = nn.Sequential()
            for j in range(blocks[i]):
                stride = 2 if i > 0 and j == 0 else 1
                layer.append(PlainWideBlock(inputs, channels[i], stride, se_reduction))
                inputs = channels[i]
            setattr(self, f"layer{i + 1}", layer)
        self.bn_last = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for i in range(self.count):
            x = getattr(self, f"layer{i + 1}")(x)
        x = torch.relu(self.bn_last(x))
        return self.linear(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


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
        stem_channels: int | None = None,
        stem_se: int = 0,
        block_se: int = 0,
        preactivated: bool = False,
    ) -> None:
        super().__init__()
        inputs = stem_channels or channels[0]
        self.conv1 = nn.Conv2d(image_channels, inputs, 3, 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.se = PlainSqueezeExcite(inputs, stem_se) if stem_se else nn.Identity()
        self.count = len(blocks)
        for i in range(self.count):
            layer = nn.Sequential()
            for j in range(blocks[i]):
                stride = 2 if i > 0 and j == 0 else 1
                kernel, skip = kernels[i], skip_kernels[i]
                layer.append(PlainBlock(inputs, channels[i], kernel, skip, stride, block_se, preactivated))
                inputs = channels[i]
            setattr(self, f"layer{i + 1}", layer)
        self.pool = nn.AvgPool2d(pool)
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(torch.relu(self.bn1(self.conv1(x))))
        for i in range(self.count):
            x = getattr(self, f"layer{i + 1}")(x)
        x = torch.relu(x)  # changes nothing where the blocks end in it
        return self.linear(torch.flatten(self.pool(x), 1))
