"""A run small enough for a test: made-up 8x8 pictures in five classes, two residual layers, float64 throughout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightclass import seeding
from weightclass.model.networks import build, group_norms
from weightclass.model.resnet import ResNetConfig
from weightclass.training import optim, schedule
from weightclass.training.averaging import Average
from weightclass.training.checkpoint import Keeper
from weightclass.training.lookahead import Lookahead
from weightclass.training.loop import Plan, State, Train, fit

IMAGES, CLASSES = 40, 5


@dataclass
class Batch:
    images: Tensor
    labels: Tensor
    slots: Tensor
    total: int = 0
    teacher: Tensor | None = None


def pictures(count: int = IMAGES) -> tuple[Tensor, Tensor]:
    """uint8 [count, 3, 8, 8] with a band of rows lit by the class, and labels [count]."""
    labels = torch.arange(count) % CLASSES
    noise = seeding.integers(seeding.key(0, "pictures"), torch.arange(count * 192), 0, 160)[0].view(count, 3, 8, 8)
    lit = (torch.arange(8) == labels[:, None] + 1).view(count, 1, 8, 1)
    return (noise + 80 * lit).to(torch.uint8), labels


def model(dropout: float = 0.0, group: int = 0, seed: int = 0, norm: Any = "batch") -> nn.Module:
    config = ResNetConfig(blocks=(1, 1), channels=(4, 8), pool="global", dropout=dropout, norm=norm)
    network = build(config, (3, 8, 8), CLASSES, seed).double()
    group_norms(network, group)
    return network


@dataclass
class Watcher:
    """Notes what the loop tells it; asks it to stop at step `stop_at`; `spoil` edits the state after each step."""

    stop_at: int = -1
    spoil: Any = None
    epochs: list[Any] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    cuts: list[tuple[int, bool]] = field(default_factory=list)
    step: int = 0

    def stepped(self, state: State, images: int, waited: float) -> None:
        assert waited >= 0
        self.step = state.step
        self.images.append(images)
        self.losses.append(state.sums[0].item())
        if self.spoil:
            self.spoil(state)

    def epoch_done(self, state: State, epoch: int, means: tuple[float, float], rate: float) -> None:
        self.epochs.append((epoch, *means, rate))

    def should_stop(self, keeper: Keeper) -> str | None:
        return "asked" if self.step == self.stop_at else None

    def cut(self, plan: Plan) -> None:
        self.cuts.append((plan.micro_batch, plan.recompute))


@dataclass
class Run:
    """State, plan and batches of one training."""

    train: Train
    optimizer: Any = field(default_factory=optim.SGD)
    schedule: Any = field(default_factory=schedule.Constant)
    dropout: float = 0.0
    norm: str = "batch"

    def __post_init__(self) -> None:
        network = model(self.dropout, self.train.bn_group, norm=self.norm)
        average = Average(network, self.train.ema) if self.train.ema else None
        every, alpha = self.train.lookahead, self.train.lookahead_alpha
        lookahead = Lookahead(network, every, alpha) if every else None
        sums = torch.zeros(3, dtype=torch.float64)
        self.state = State(network, optim.build(self.optimizer, network), average, lookahead, sums=sums)
        full, tail = divmod(IMAGES, self.train.batch_size)
        self.plan = Plan(self.train, full + (tail > 1 and not self.train.drop_last), self.rate, torch.device("cpu"))

    def rate(self, step: int) -> float:
        steps = self.plan.steps_per_epoch
        return schedule.rate(self.schedule, self.optimizer.lr, step, steps, self.train.epochs)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        images, labels = pictures()
        order = seeding.permutation(seeding.key(self.train.seed, "order", epoch), IMAGES)
        for indices in order.split(self.train.batch_size)[first : self.plan.steps_per_epoch]:
            slots = torch.arange(len(indices))
            yield Batch(self.seen(images[indices], self.state.step, slots), labels[indices], slots)

    def seen(self, images: Tensor, step: int, slots: Tensor) -> Tensor:
        return images.double() / 128 - 1

    def fit(self, folder: Path, watcher: Watcher | None = None, every: float = 1e9) -> str | None:
        return fit(self.state, self.plan, self.batches, Keeper(folder, every), watcher or Watcher())

    def tensors(self) -> dict[str, Tensor]:
        """All that training has changed: weights, BN buffers, their averages, sums."""
        state = self.state
        found = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
        if state.average:
            found |= {f"average/{name}": tensor for name, tensor in state.average.twin.state_dict().items()}
        if state.lookahead:
            found |= {f"slow/{name}": tensor for name, tensor in state.lookahead.slow.state_dict().items()}
        return found | {"sums": state.sums}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not equal bit for bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]
