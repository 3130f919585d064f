"""An MBConv network written out by hand: two layers of two blocks, 3x3 then 5x5, expansion 4, squeeze of a quarter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# layer, block, inputs, inside, squeezed, outputs, stride, kernel
TABLE = [
    (1, 0, 8, 32, 2, 8, 1, 3),
    (1, 1, 8, 32, 2, 8, 1, 3),
    (2, 0, 8, 32, 2, 12, 2, 5),
    (2, 1, 12, 48, 3, 12, 1, 5),
]


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class PlainSqueeze(nn.Module):
    def __init__(self, inside: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(inside, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, inside, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.flatten(2).mean(2)[:, :, None, None]
        return x * torch.sigmoid(self.fc2(torch.clamp(self.fc1(means), min=0)))


class PlainBlock(nn.Module):
    def __init__(self, inputs: int, inside: int, squeezed: int, outputs: int, stride: int, kernel: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(inputs, inside, 1, bias=False), nn.BatchNorm2d(inside))
        depthwise = nn.Conv2d(inside, inside, kernel, stride, padding=(kernel - 1) // 2, groups=inside, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(inside))
        self.se = PlainSqueeze(inside, squeezed)
        self.project = nn.Sequential(nn.Conv2d(inside, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.same = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.se(silu(self.depthwise(silu(self.expand(x))))))
        return x + y if self.same else y


class PlainMBConv(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(*[PlainBlock(*row[2:]) for row in TABLE if row[0] == 1])
        self.layer2 = nn.Sequential(*[PlainBlock(*row[2:]) for row in TABLE if row[0] == 2])
        self.linear = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(silu(self.bn1(self.conv1(x)))))
        return self.linear(silu(x).flatten(2).mean(2))
