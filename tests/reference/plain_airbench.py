"""airbench94 in its Muon version, written out plainly for any device: what `sprint-94` is measured against.

After airbench94_muon.py of github.com/KellerJordan/cifar10-airbench (network, optimizers, schedule, augmentation,
labels smoothed, six views), in float32 with bfloat16 autocast where asked, instead of half precision on an A100.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, EPOCHS = 2000, 8
BIAS_RATE, HEAD_RATE, MUON_RATE = 0.053, 0.67, 0.24
DECAY = 2e-6 * BATCH


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


class Optimizers:
    """Both of a training, and their linear schedules: the stem's bias is trained in the first three epochs."""

    def __init__(self, model: CifarNet, steps: int, bias_steps: int) -> None:
        norms = [p for name, p in model.named_parameters() if "norm" in name and p.requires_grad]
        bias, head = model.whiten.bias, model.head.weight
        configs = [
            {"params": [bias], "lr": BIAS_RATE, "weight_decay": DECAY / BIAS_RATE},
            {"params": norms, "lr": BIAS_RATE, "weight_decay": DECAY / BIAS_RATE},
            {"params": [head], "lr": HEAD_RATE, "weight_decay": DECAY / HEAD_RATE},
        ]
        self.sgd = torch.optim.SGD(configs, momentum=0.85, nesterov=True)
        filters = [p for p in model.parameters() if p.ndim == 4 and p.requires_grad]
        self.muon = PlainMuon(filters, lr=MUON_RATE, momentum=0.6)
        self.rates = [(group, group["lr"], steps) for group in (*self.sgd.param_groups, *self.muon.param_groups)]
        self.rates[0] = (self.sgd.param_groups[0], BIAS_RATE, bias_steps)

    def step(self, step: int) -> None:
        for group, rate, steps in self.rates:
            group["lr"] = rate * max(1 - step / steps, 0)
        self.sgd.step()
        self.muon.step()
        self.sgd.zero_grad(set_to_none=True)
        self.muon.zero_grad(set_to_none=True)


def normalised(images: Tensor) -> Tensor:
    """uint8 [n, 3, 32, 32] to floats of each channel's mean and deviation, channels last."""
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((images / 255 - mean) / std).to(memory_format=torch.channels_last)


def epochs(images: Tensor, labels: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches: mirrored in alternation (drawn in the first epoch), moved by up to 2 pixels into a reflected border."""
    mirrored = torch.where((torch.rand(len(images)) < 0.5).view(-1, 1, 1, 1), images.flip(3), images)
    padded = F.pad(mirrored, (2,) * 4, "reflect")
    for epoch in range(count):
        moved = crops(padded, 32)
        moved = moved.flip(3) if epoch % 2 else moved
        for chosen in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            yield moved[chosen].to(memory_format=torch.channels_last), labels[chosen]


def crops(padded: Tensor, size: int) -> Tensor:
    border = (padded.size(-1) - size) // 2
    shifts = torch.randint(-border, border + 1, (len(padded), 2))
    out = padded.new_empty(len(padded), 3, size, size)
    for down in range(-border, border + 1):
        for right in range(-border, border + 1):
            chosen = (shifts[:, 0] == down) & (shifts[:, 1] == right)
            top, left = border + down, border + right
            out[chosen] = padded[chosen, :, top : top + size, left : left + size]
    return out


def train(
    images: Tensor,
    labels: Tensor,
    widths: tuple[int, int, int] = (64, 256, 256),
    count: int = EPOCHS,
    half: bool = False,
    compile: bool = False,
    told: Callable[[int, float], None] = lambda step, loss: None,
) -> CifarNet:
    """The network after `count` epochs on uint8 images [n, 3, 32, 32]; `told` hears of every step."""
    model = CifarNet(widths).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = count * (len(images) // BATCH)
    optimizers = Optimizers(model, steps, math.ceil(steps * 3 / 8))
    pixels = normalised(images)
    model.init_whiten(pixels[:5000])
    forward = torch.compile(model) if compile else model
    for step, (batch, truth) in enumerate(epochs(pixels, labels, count)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logits = forward(batch)
        loss = F.cross_entropy(logits.float(), truth, label_smoothing=0.2, reduction="sum")
        loss.backward()
        optimizers.step(step)
        told(step, loss.item() / len(truth))
    return model.eval()


def pays(images: Tensor) -> bool:
    """Whether a training step on `images` is faster in bfloat16, each tried after one that warms up."""
    model, seconds = CifarNet().to(memory_format=torch.channels_last), {}  # type: ignore[call-overload]
    pixels = normalised(images)
    for half in (False, True, False, True):
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logits = model(pixels)
        logits.float().square().mean().backward()
        seconds[half] = time.perf_counter() - started
    return seconds[True] < seconds[False]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, views: bool) -> float:
    """Of one look, or of airbench's six: the image, and it moved by a pixel up and left and down and right, each with
    its mirror image."""
    right = 0
    for pixels, truth in zip(images.split(2000), labels.split(2000), strict=True):
        x = normalised(pixels)
        logits = _mirrored(model, x) if views else model(x)
        if views:
            padded = F.pad(x, (1,) * 4, "reflect")
            moved = [padded[:, :, 0:32, 0:32], padded[:, :, 2:34, 2:34]]
            logits = 0.5 * logits + 0.5 * torch.stack([_mirrored(model, each) for each in moved]).mean(0)
        right += int((logits.argmax(1) == truth).sum())
    return right / len(labels)


def _mirrored(model: nn.Module, x: Tensor) -> Tensor:
    return 0.5 * model(x) + 0.5 * model(x.flip(-1))
