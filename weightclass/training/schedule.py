"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Meta

from weightclass.config import Table

Epochs = Annotated[float, Meta(ge=0, le=100_000)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class Schedule(Table):
    """What all schedules share."""

    warmup: Epochs = 0.0
    """Epochs of linear rise from (almost) zero, before the schedule proper."""
    per: Literal["step", "epoch"] = "step"
    """Whether the rate moves at every step or, as torch's schedulers in the paper, once an epoch."""


class Constant(Schedule, tag_field="name", tag="constant"):
    """Recipe table [schedule] with name = "constant"."""


class Cosine(Schedule, tag_field="name", tag="cosine"):
    """lr_min + (lr - lr_min)(1 + cos(pi t / T)) / 2 (paper, section Optimizer and Scheduler)."""

    eta_min: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """The rate at the end, in absolute terms."""
    cycles: Annotated[int, Meta(ge=1, le=1000)] = 1
    """Equal cosine cycles, each starting again from the full rate (warm restarts)."""


class Step(Schedule, tag_field="name", tag="step"):
    """Multiply by `gamma` every `step_size` epochs (torch's StepLR)."""

    step_size: Annotated[int, Meta(ge=1, le=100_000)] = 15
    gamma: Annotated[float, Meta(gt=0, le=1)] = 0.1


class OneCycle(Schedule, tag_field="name", tag="onecycle"):
    """Linear from `start` x lr up to lr at `peak` of the training, then linear down to `end` x lr."""

    peak: Annotated[float, Meta(gt=0, lt=1)] = 0.2
    start: Fraction = 0.0
    end: Fraction = 0.0

    def __post_init__(self) -> None:
        if self.warmup:
            raise ValueError("warmup goes with the other schedules; onecycle rises by itself until its peak")


AnySchedule = Constant | Cosine | Step | OneCycle


def rate(config: AnySchedule, lr: float, step: int, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of training step `step` (0-based), `lr` being the optimizer's full rate."""
    warmup = config.warmup * steps_per_epoch
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if config.per == "epoch":
        step -= step % steps_per_epoch
    past, span = max(step - warmup, 0), steps_per_epoch * epochs - warmup
    match config:
        case Constant():
            return lr
        case Cosine():
            phase = past * config.cycles % span / span  # whole numbers first: exactly 0 where a cycle starts
            return config.eta_min + (lr - config.eta_min) * (1 + math.cos(math.pi * phase)) / 2
        case Step():
            return lr * config.gamma ** (step // (steps_per_epoch * config.step_size))
        case OneCycle():
            done = past / span
            if done < config.peak:
                return lr * (config.start + (1 - config.start) * done / config.peak)
            return lr * (config.end + (1 - config.end) * (1 - done) / (1 - config.peak))
