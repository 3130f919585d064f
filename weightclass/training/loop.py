"""The training loop: it is handed batches, a network and an optimizer, and knows of nothing else.

One step is one *global* batch. Micro-batches and ranks only cut it: every image keeps its slot, batch statistics are
taken over groups of `bn_group` images in their order, and gradients are weighted by images, so the step is the same.
All ranks hold the same state after each step, and rank 0 saves and judges it. A step that does not fit into memory is
cut, and stays the step that was asked for.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from weightclass import ranks, seeding
from weightclass.batching import cuts, parts
from weightclass.config import Table
from weightclass.device import out_of_memory
from weightclass.errors import UserError
from weightclass.training.averaging import Average
from weightclass.training.checkpoint import Keeper
from weightclass.training.distill import Distill
from weightclass.training.lookahead import Lookahead
from weightclass.training.loss import cross_entropy, distilled
from weightclass.training.sam import uphill

Count = Annotated[int, Meta(ge=0, le=10_000_000)]


class Train(Table):
    """Recipe table [train]."""

    cosmetic: ClassVar[frozenset[str]] = frozenset({"checkpoint_seconds"})

    epochs: Annotated[int, Meta(ge=1, le=100_000)] | Literal["fit"] = 30
    """"fit": as many as this machine can train within the time limit, measured once, at the run's first start."""
    batch_size: Annotated[int, Meta(ge=2, le=1_000_000)] = 128
    """Images a step, over all micro-batches."""
    micro_batch: Count = 0
    """Images a forward pass; 0: the whole batch, or what of it fits. Saves memory, changes nothing else."""
    bn_group: Count = 0
    """Images that share their batch statistics, which no forward pass may divide; 0: the whole batch."""
    drop_last: bool = False
    """Leave out an epoch's last, smaller batch."""
    label_smoothing: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Decay a step of the weights' moving average, which is what gets evaluated and shipped; 0: none."""
    clip_norm: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """Largest 2-norm of a step's gradient over all parameters, to which a longer one is scaled; 0: any. Clipping is of
    the whole batch's gradient; with SAM, of the second."""
    clip_value: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    """Largest size of an entry of that gradient, to which a larger one is cut; 0: any."""
    sam: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """Rho of sharpness-aware minimisation (Foret et al. 2021), which doubles a step's work; 0: none."""
    lookahead: Count = 0
    """Steps (k) after which the slow weights follow (Zhang et al. 2019), which get shipped; 0: none. Curves show the
    fast weights with the running statistics of their training."""
    lookahead_alpha: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Share of the way to the fast weights that the slow ones go."""
    settle: bool = False
    """End with running statistics measured anew with the last weights, as Lookahead always does: a moving average of
    small batches is noisy, and it lags behind."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    checkpoint_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 60.0

    def __post_init__(self) -> None:
        if not all(size == 0 or 2 <= size <= self.batch_size for size in (self.micro_batch, self.bn_group)):
            cause = "one image has no batch statistics"
            raise ValueError(f"micro_batch and bn_group must be 0 or at least 2 ({cause}) and at most batch_size")
        micro, group = self.micro_batch or self.batch_size, self.bn_group or self.batch_size
        if micro % group:
            raise ValueError(
                f"bn_group ({group}) must divide micro_batch ({micro}), for batch statistics are not taken across "
                "forward passes (0 is the whole batch for both)"
            )
        if self.clip_norm and self.clip_value:
            raise ValueError("clip_norm and clip_value both bound the gradient: set one of them to 0")
        if self.lookahead and self.ema:
            raise ValueError("lookahead and ema both average the weights that get shipped: set one of them to 0")
        if self.settle and self.ema:
            raise ValueError("settle measures running statistics, which ema averages: set settle = false, or ema = 0")

    @property
    def length(self) -> int:
        """`epochs` as the number that "fit" has become before a run trains. Raises UserError where it has not."""
        if self.epochs == "fit":
            raise UserError('train.epochs = "fit" is for `weightclass train` alone: name a number of epochs')
        return self.epochs

    @property
    def group(self) -> int:
        """`bn_group`, 0 where that is the whole batch."""
        return self.bn_group % self.batch_size


class Batch(Protocol):
    """Normalised images float32 [n, C, H, W], labels int64 [n] (or probabilities float32 [n, classes]), and slots int64
    [n] (places in the global batch, which has `total` images; 0: these); a teacher's logits [n, classes], if any."""

    images: Tensor
    labels: Tensor
    slots: Tensor
    total: int
    teacher: Tensor | None


@dataclass
class State:
    """All that changes while training, and so all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    lookahead: Lookahead | None = None
    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(3))
    """Of this epoch so far, on the device (float64 where it has it): loss x images, correct (by the likeliest label,
    the first of equal ones), images."""
    seconds: float = 0.0
    """Time trained, over all sittings of the run, evaluations left out."""
    waited: float = 0.0
    """Of it, waiting for data."""
    augmented: float = 0.0
    """Of it, augmenting and normalising images, and asking teachers."""
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
    graphs: bool = False
    """Launch a compiled pass as one CUDA graph, whose outputs live until the next."""
    micro_batch: int = 0
    """Images a forward pass; 0: as `train` says."""
    distill: Distill = field(default_factory=Distill)
    recompute: bool = False
    """Compute the blocks (modules that have such an attribute) again in the backward pass instead of holding them."""

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.steps_per_epoch * self.train.length

    @property
    def settling(self) -> int:
        """Batches after the last step, see `settle`: 10,000 images, with which running statistics are as good as they
        get (PreciseBN in Wu & Johnson 2021 takes 10^3 to 10^4), or one epoch."""
        if not (self.train.settle or self.train.lookahead):
            return 0
        return min(math.ceil(10_000 / self.train.batch_size), self.steps_per_epoch)


class Watcher(Protocol):
    """What the loop tells the outside; `session.Observer` implements it."""

    def stepped(self, state: State, images: int, waited: float) -> None:
        """After every step; `waited` seconds went by until the batch was there."""

    def epoch_done(self, state: State, epoch: int, means: tuple[float, float], rate: float) -> None:
        """After each epoch (1-based), with its mean loss and accuracy and its last rate. Evaluates, records."""

    def should_stop(self, keeper: Keeper) -> str | None:
        """A reason to save and stop now, or None."""

    def cut(self, plan: Plan) -> None:
        """Memory ran out in one of the first steps, and `plan` is what fitted: the same step in smaller pieces."""


def fit(
    state: State, plan: Plan, batches: Callable[[int, int], Iterator[Batch]], keeper: Keeper, watcher: Watcher
) -> str | None:
    """Train `state` from wherever it stands to the plan's end; returns why it stopped early, or None.

    `batches(epoch, first)` yields the batches of one epoch from its step `first` on. Raises UserError where a diverged
    or too large a training cannot go on, or a too short one not begin.
    """
    if plan.train.lookahead > plan.steps:  # the slow weights would never move
        raise UserError(f"train.lookahead = {plan.train.lookahead}: the whole training has only {plan.steps:,} steps")
    start = state.step
    try:
        stopped = _epochs(state, plan, batches, keeper, watcher)
        if plan.settling and not stopped and not ranks.here.rank:
            with ranks.alone():
                settle(state, plan, batches)
        return stopped
    except Exception as error:
        if not out_of_memory(error):
            raise
        if state.step == start:
            raise _too_large(plan, ", set train.micro_batch" if ranks.here.size > 1 else "") from None
        raise UserError(
            f"out of memory at step {state.step + 1:,}, though earlier steps fitted: something else has taken the "
            "memory; free it, and the same command continues from the last checkpoint"
        ) from None


def _epochs(
    state: State, plan: Plan, batches: Callable[[int, int], Iterator[Batch]], keeper: Keeper, watcher: Watcher
) -> str | None:
    fitted: list[int] = []  # images of the steps that were run carefully
    forward = compiled(state.model, plan)
    while state.step < plan.steps:
        epoch, first = divmod(state.step, plan.steps_per_epoch)
        state.model.train()
        asked = time.perf_counter()
        for batch in batches(epoch, first):
            waited = time.perf_counter() - asked
            # Two of each size, for the first one brings the optimizer's state; ranks would have to be cut alike.
            if fitted.count(len(batch.labels)) < 2 and ranks.here.size == 1:
                plan = careful_step(state, plan, batch, forward, watcher)
                fitted.append(len(batch.labels))
            else:
                training_step(state, plan, batch, forward)
            watcher.stepped(state, batch.total or len(batch.labels), waited)
            if state.step % plan.steps_per_epoch == 0:  # recorded before it is saved: no record is lost or doubled
                check_finite(state, plan)
                loss, correct, images = state.sums.tolist()
                state.sums.zero_()
                watcher.epoch_done(state, epoch + 1, (loss / images, correct / images), plan.rate(state.step - 1))
            reason = ranks.agree(watcher.should_stop(keeper))
            if not ranks.here.rank and (reason or keeper.due() or state.step == plan.steps):
                check_finite(state, plan)
                keeper.save(state)
            if reason:
                return reason
            asked = time.perf_counter()
    return None


def compiled(model: nn.Module, plan: Plan) -> Callable[[Tensor], Tensor]:
    """The forward pass as the plan computes it."""
    if not plan.compile:
        return model
    # dynamic=False: an epoch's short last batch gets a graph of its own, and a resumed run the same ones
    return torch.compile(model, dynamic=False, mode="reduce-overhead" if plan.graphs else None)


def training_step(state: State, plan: Plan, batch: Batch, forward: Callable[[Tensor], Tensor]) -> None:
    """One optimizer step on one global batch."""
    _gradients(state, plan, batch, forward)
    _update(state, plan)


def _gradients(state: State, plan: Plan, batch: Batch, forward: Callable[[Tensor], Tensor]) -> None:
    """Those that the optimizer follows: of the batch's mean loss, or SAM's, clipped where asked."""
    with _merged(state, plan, batch):
        _backward(state, plan, batch, forward, state.sums)
    if plan.train.sam:
        with uphill(state.model, plan.train.sam):
            _backward(state, plan, batch, forward, torch.zeros_like(state.sums))  # which nobody reads
    if plan.train.clip_norm:
        nn.utils.clip_grad_norm_(state.model.parameters(), plan.train.clip_norm)
    if plan.train.clip_value:
        nn.utils.clip_grad_value_(state.model.parameters(), plan.train.clip_value)


def _backward(state: State, plan: Plan, batch: Batch, forward: Callable[[Tensor], Tensor], sums: Tensor) -> None:
    """The gradients of the batch's mean loss, through as many forward passes as `micro_batch` asks; adds to `sums`."""
    counted = batch.total or len(batch.labels) * ranks.here.size  # images of all ranks, whose gradients are summed
    state.optimizer.zero_grad(set_to_none=True)
    if plan.graphs and (plan.micro_batch or plan.train.micro_batch):
        for parameter in state.model.parameters():  # or they would lie where a graph's next launch writes anew
            parameter.grad = torch.zeros_like(parameter)
    for images, labels, teacher in _pieces(state, plan, batch):
        if plan.graphs:  # nothing of an earlier pass is needed any more, one that failed for want of memory included
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(plan.device.type, dtype=torch.bfloat16, enabled=plan.precision == "bfloat16"):
            logits = forward(images)
        loss = cross_entropy(logits, labels, plan.train.label_smoothing)
        if teacher is not None:
            loss = distilled(loss, logits, teacher, plan.distill.temperature, plan.distill.weight)
        (loss * (len(labels) / counted)).backward()
        sums[0] += loss.detach() * len(labels)
        sums[1] += (logits.argmax(1) == (labels if labels.ndim == 1 else labels.argmax(1))).sum()
        sums[2] += len(labels)
    # As fast as DistributedDataParallel here (docs/ranks.md), and the forward pass is what it is without ranks.
    ranks.add_([parameter.grad for parameter in state.model.parameters() if parameter.grad is not None])


@contextmanager
def _merged(state: State, plan: Plan, batch: Batch) -> Iterator[None]:
    """Around passes over a rank's part: sums become those of all ranks, running statistics what all groups would have
    made of them in their order.

    A group's statistics s turn r into d r + (1 - d) s, so what a rank adds, (its r) - d^(its groups) (the old r), is
    worth d^(groups on later ranks) in the end. To what is merely summed the same applies with d = 1.
    """
    if not batch.total:
        yield
        return
    group, rank = plan.train.group, ranks.here.rank  # without groups, running statistics are those of all already
    norms: list[Any] = [each for each in state.model.modules() if group and isinstance(each, nn.BatchNorm2d)]
    groups = [len(cuts(size, group)) for size in parts(batch.total, group, ranks.here.size)]
    own, later, every = groups[rank], sum(groups[rank + 1 :]), sum(groups)
    moved = [(state.sums, 1.0)]
    moved += [(running, 1 - norm.momentum) for norm in norms for running in (norm.running_mean, norm.running_var)]
    before = [tensor.clone() for tensor, _ in moved]
    yield
    for (tensor, decay), old in zip(moved, before, strict=True):
        tensor.sub_(old, alpha=decay**own).mul_(decay**later)
    ranks.add_([tensor for tensor, _ in moved])
    for (tensor, decay), old in zip(moved, before, strict=True):
        tensor.add_(old, alpha=decay**every)
    for norm in norms:
        norm.num_batches_tracked += every - own


def _pieces(state: State, plan: Plan, batch: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Images, labels and teacher of a step's micro-batches; the network's layers know of each where and when it is."""
    key = seeding.key(plan.train.seed, "dropout", state.step)
    sizes = cuts(len(batch.labels), plan.micro_batch or plan.train.micro_batch)
    teacher = [None] * len(sizes) if batch.teacher is None else batch.teacher.split(sizes)
    pieces = zip(*(whole.split(sizes) for whole in (batch.images, batch.labels, batch.slots)), teacher, strict=True)
    for images, labels, slots, taught in pieces:
        for module in state.model.modules():
            kind: Any = type(module)  # whose attributes are found ten times as fast as a module's
            if hasattr(kind, "place"):  # a layer that draws (dropout)
                kind.place(module, key, slots)
            if hasattr(kind, "shared"):  # batch norm
                module.shared = batch.total > 0  # type: ignore[assignment]
            if hasattr(kind, "recompute"):
                module.recompute = plan.recompute  # type: ignore[assignment]
        yield images, labels, taught


def _update(state: State, plan: Plan) -> None:
    for group in state.optimizer.param_groups:
        group["lr"] = plan.rate(state.step) * group.get("scale", 1)
    state.optimizer.step()
    state.step += 1
    for follower in (state.average, state.lookahead):
        if follower:
            follower.update(state.model, state.step)


def settle(state: State, plan: Plan, batches: Callable[[int, int], Iterator[Batch]]) -> None:
    """End a training: Lookahead's slow weights become the network's, and running statistics those of its last weights.

    Those are the plain mean over `plan.settling` batches (over their groups of `bn_group` images) of the epoch that
    would come next, in full precision, as the network is judged. All of it is a function of the last checkpoint, so a
    sitting that is killed here loses nothing, and the next one settles on the same bits.
    """
    if state.lookahead:
        state.lookahead.hand_over(state.model)
    ahead = islice(batches(plan.train.length, 0), plan.settling)
    update_bn((images for batch in ahead for images, *_ in _pieces(state, plan, batch)), state.model)


# --- memory ------------------------------------------------------------------------------------------------


def careful_step(state: State, plan: Plan, batch: Batch, forward: Callable[[Tensor], Tensor], watcher: Watcher) -> Plan:
    """A `training_step` that is tried again in smaller pieces while memory runs out; returns the plan that fitted."""
    moved, wanted = [state.sums, *state.model.buffers()], plan
    before = [tensor.clone() for tensor in moved]
    while True:
        try:
            _gradients(state, plan, batch, forward)
            break
        except Exception as error:
            if not out_of_memory(error):
                raise
        # Out here the error is gone, and with it what the attempt held.
        for tensor, value in zip(moved, before, strict=True):
            tensor.copy_(value)
        gc.collect()
        if plan.device.type != "cpu":
            torch.get_device_module(plan.device).empty_cache()
        plan = _cheaper(plan, state.model, len(batch.labels))
    if plan is not wanted:
        watcher.cut(plan)
    _update(state, plan)
    return plan


def _cheaper(plan: Plan, model: nn.Module, images: int) -> Plan:
    """The next plan for a batch of `images`: half the micro-batch, in whole groups of batch norm where the network has
    any; then blocks computed twice, which is a third more work. Raises UserError where neither is left."""
    normed = any(name.endswith("running_mean") for name, _ in model.named_buffers())
    group = (plan.train.bn_group or images) if normed else 2
    micro = min(plan.micro_batch or plan.train.micro_batch or images, images)
    smaller = max(micro // 2 // group * group, group)
    if smaller < micro:
        return replace(plan, micro_batch=smaller)
    if not plan.recompute and any(hasattr(module, "recompute") for module in model.modules()):
        return replace(plan, recompute=True)
    divisor = next((size for size in range(32, 7, -1) if plan.train.batch_size % size == 0), group)
    raise _too_large(plan, f", train.bn_group={divisor} (which lets the batch be cut)" if divisor < group else "")


def _too_large(plan: Plan, cure: str = "") -> UserError:
    size = plan.train.batch_size
    return UserError(
        f"not enough memory for a step of {size:,} images: choose a smaller train.batch_size{cure} or a smaller network"
    )


def check_finite(state: State, plan: Plan) -> None:
    """A diverged run stops here, before a checkpoint of it is written. One device sync."""
    if torch.isfinite(state.sums[0] + nn.utils.get_total_norm(list(state.model.parameters()))).item():
        return
    rate = plan.rate(state.step - 1)
    third = f"optimizer.lr={state.optimizer.defaults['lr'] / 3:.2g}"
    if any("scale" in group for group in state.optimizer.param_groups):
        third = "optimizer.vector_lr, then sgd_lr and lr"
    raise UserError(
        f"the loss is no longer a number at step {state.step} (epoch {(state.step - 1) // plan.steps_per_epoch + 1}, "
        f"lr {rate:.3g}): try a third of the rate ({third}), more "
        "schedule.warmup, or machine.precision=float32"
    )
