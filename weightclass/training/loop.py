"""The training loop: it is handed batches, a network and an optimizer, and knows of nothing else.

One step is one *global* batch. Micro-batches (and, later, ranks) only cut it: every image keeps its slot, batch
statistics are taken over groups of `bn_group` images in their order, and gradients are weighted by images, so the step
is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Protocol

import torch
from msgspec import Meta
from torch import Tensor, nn

from weightclass import seeding
from weightclass.batching import cuts
from weightclass.config import Table
from weightclass.errors import UserError
from weightclass.training.averaging import Average
from weightclass.training.checkpoint import Keeper
from weightclass.training.loss import cross_entropy

Count = Annotated[int, Meta(ge=0, le=10_000_000)]


class Train(Table):
    """Recipe table [train]."""

    cosmetic: ClassVar[frozenset[str]] = frozenset({"checkpoint_seconds"})

    epochs: Annotated[int, Meta(ge=1, le=100_000)] = 30
    batch_size: Annotated[int, Meta(ge=2, le=1_000_000)] = 128
    """Images a step, over all micro-batches."""
    micro_batch: Count = 0
    """Images a forward pass; 0: the whole batch. Saves memory, changes nothing else."""
    bn_group: Count = 0
    """Images that share their batch statistics; 0: the whole batch."""
    drop_last: bool = False
    """Leave out an epoch's last, smaller batch."""
    label_smoothing: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Decay a step of the weights' moving average, which is what gets evaluated and shipped; 0: none."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    checkpoint_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 60.0

    def __post_init__(self) -> None:
        micro, group = self.micro_batch or self.batch_size, self.bn_group or self.batch_size
        if 1 in (self.micro_batch, self.bn_group):
            raise ValueError("micro_batch and bn_group must be 0 or at least 2: one image has no batch statistics")
        if micro > self.batch_size or group > self.batch_size:
            raise ValueError("micro_batch and bn_group must be at most batch_size")
        if micro % group:
            raise ValueError(
                f"bn_group ({group}) must divide micro_batch ({micro}), for batch statistics are not taken across "
                "forward passes (0 is the whole batch for both)"
            )


class Batch(Protocol):
    """Normalised images float32 [n, C, H, W], labels int64 [n], slots int64 [n] (places in the global batch)."""

    images: Tensor
    labels: Tensor
    slots: Tensor


@dataclass
class State:
    """All that changes while training, and so all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(3))
    """Of this epoch so far, on the device (float64 where it has it): loss x images, correct, images."""
    seconds: float = 0.0
    """Time trained, over all sittings of the run, evaluations left out."""
    waited: float = 0.0
    """Of it, waiting for data, augmentation included."""
    saved: float = 0.0
    """Of it, writing checkpoints."""

    @property
    def evaluated(self) -> nn.Module:
        """The network that is judged and shipped: the averaged twin where there is one."""
        return self.average.twin if self.average else self.model


@dataclass(frozen=True)
class Plan:
    """What stays fixed: the recipe's table, the rate of each step, and how to compute."""

    train: Train
    steps_per_epoch: int
    rate: Callable[[int], float]
    device: torch.device
    precision: str = "float32"
    compile: bool = False

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.steps_per_epoch * self.train.epochs


class Watcher(Protocol):
    """What the loop tells the outside; `session.Observer` implements it."""

    def stepped(self, state: State, images: int, waited: float) -> None:
        """After every step; `waited` seconds went by until the batch was there."""

    def epoch_done(self, state: State, epoch: int, means: tuple[float, float], rate: float) -> None:
        """After each epoch (1-based), with its mean loss and accuracy and its last rate. Evaluates, records."""

    def should_stop(self, keeper: Keeper) -> str | None:
        """A reason to save and stop now, or None."""


def fit(
    state: State, plan: Plan, batches: Callable[[int, int], Iterator[Batch]], keeper: Keeper, watcher: Watcher
) -> str | None:
    """Train `state` from wherever it stands to the plan's end; returns why it stopped early, or None.

    `batches(epoch, first)` yields the batches of one epoch from its step `first` on.
    """
    # dynamic=False: an epoch's short last batch gets a graph of its own, and a resumed run the same ones
    forward = torch.compile(state.model, dynamic=False) if plan.compile else state.model
    while state.step < plan.steps:
        epoch, first = divmod(state.step, plan.steps_per_epoch)
        state.model.train()
        asked = time.perf_counter()
        for batch in batches(epoch, first):
            waited = time.perf_counter() - asked
            training_step(state, plan, batch, forward)
            watcher.stepped(state, len(batch.labels), waited)
            # An epoch's last step is saved after its record is written, so a record is never lost or doubled.
            if state.step % plan.steps_per_epoch:
                reason = watcher.should_stop(keeper)
                if reason or keeper.due():
                    check_finite(state, plan)
                    keeper.save(state)
                if reason:
                    return reason
            asked = time.perf_counter()
        check_finite(state, plan)
        loss, correct, images = state.sums.tolist()
        state.sums.zero_()
        watcher.epoch_done(state, epoch + 1, (loss / images, correct / images), plan.rate(state.step - 1))
        reason = watcher.should_stop(keeper)
        if reason or keeper.due() or state.step == plan.steps:
            keeper.save(state)
        if reason:
            return reason
    return None


def training_step(state: State, plan: Plan, batch: Batch, forward: Callable[[Tensor], Tensor]) -> None:
    """One optimizer step on one global batch, through as many forward passes as `micro_batch` asks."""
    for group in state.optimizer.param_groups:
        group["lr"] = plan.rate(state.step)
    state.optimizer.zero_grad(set_to_none=True)
    sizes = cuts(len(batch.labels), plan.train.micro_batch)
    parts = zip(*(whole.split(sizes) for whole in (batch.images, batch.labels, batch.slots)), strict=True)
    for images, labels, slots in parts:
        _place(state.model, seeding.key(plan.train.seed, "dropout", state.step), slots)
        with torch.autocast(plan.device.type, dtype=torch.bfloat16, enabled=plan.precision == "bfloat16"):
            logits = forward(images)
        loss = cross_entropy(logits, labels, plan.train.label_smoothing)
        share = len(labels) / len(batch.labels)
        (loss * share).backward()
        _add_up(state.sums, loss, logits, labels)
    state.optimizer.step()
    state.step += 1
    if state.average:
        state.average.update(state.model, state.step)


@torch.no_grad()
def _add_up(sums: Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    sums[0] += loss * len(labels)
    sums[1] += (logits.argmax(1) == labels).sum()
    sums[2] += len(labels)


def _place(model: nn.Module, key: int, slots: Tensor) -> None:
    """Tell the layers that draw (dropout) where and when they are."""
    for module in model.modules():
        if place := getattr(module, "place", None):
            place(key, slots)


def check_finite(state: State, plan: Plan) -> None:
    """A diverged run stops here, before a checkpoint of it is written. One device sync."""
    if torch.isfinite(state.sums[0] + nn.utils.get_total_norm(list(state.model.parameters()))).item():
        return
    rate = plan.rate(state.step - 1)
    raise UserError(
        f"the loss is no longer a number at step {state.step} (epoch {(state.step - 1) // plan.steps_per_epoch + 1}, "
        f"lr {rate:.3g}): try a third of the rate (optimizer.lr={state.optimizer.defaults['lr'] / 3:.2g}), more "
        "schedule.warmup, or machine.precision=float32"
    )
