"""airbench94's network and Muon, written out plainly: after airbench94_muon.py of
github.com/KellerJordan/cifar10-airbench, without its half precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvGroup(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding="same", bias=False)
        self.norm2 = nn.BatchNorm2d(outputs, eps=1e-12, momentum=0.4)
        self.activ = nn.GELU()
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad = False
        for conv in (self.conv1, self.conv2):
            torch.nn.init.dirac_(conv.weight.data[: conv.weight.shape[1]])

    def forward(self, x: Tensor) -> Tensor:
        x = self.activ(self.norm1(self.pool(self.conv1(x))))
        return self.activ(self.norm2(self.conv2(x)))


class CifarNet(nn.Module):
    def __init__(self, widths: tuple[int, int, int] = (64, 256, 256)) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2, bias=True)
        self.whiten.weight.requires_grad = False
        first, second, third = widths
        self.layers = nn.Sequential(
            nn.GELU(), ConvGroup(24, first), ConvGroup(first, second), ConvGroup(second, third), nn.MaxPool2d(3)
        )
        self.head = nn.Linear(third, 10, bias=False)
        self.head.weight.data *= 1 / self.head.weight.data.std()
        self.whiten.bias.data.zero_()

    def init_whiten(self, images: Tensor, eps: float = 5e-4) -> None:
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1).transpose(1, 3).reshape(-1, 3, 2, 2).float()
        flat = patches.view(len(patches), -1)
        values, vectors = torch.linalg.eigh((flat.T @ flat) / len(flat), UPLO="U")
        scaled = vectors.T.reshape(-1, 3, 2, 2) / torch.sqrt(values.view(-1, 1, 1, 1) + eps)
        self.whiten.weight.data[:] = torch.cat((scaled, -scaled))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.whiten(x))
        x = x.view(len(x), -1)
        return self.head(x) / x.size(-1)


def zeropower_via_newtonschulz5(gradient: Tensor, steps: int = 3) -> Tensor:
    a, b, c = (3.4445, -4.7750, 2.0315)
    x = gradient / (gradient.norm() + 1e-7)
    if gradient.size(0) > gradient.size(1):
        x = x.T
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if gradient.size(0) > gradient.size(1) else x


class PlainMuon(torch.optim.Optimizer):
    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
                buffer.mul_(group["momentum"]).add_(p.grad)
                direction = p.grad.add(buffer, alpha=group["momentum"])
                p.data.mul_(len(p.data) ** 0.5 / p.data.norm())
                update = zeropower_via_newtonschulz5(direction.reshape(len(direction), -1)).view(direction.shape)
                p.data.add_(update, alpha=-group["lr"])
