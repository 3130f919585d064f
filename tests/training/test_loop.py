"""The loop equals the one that everybody writes, cut or whole, stopped or not; a golden curve guards all of it.

`python -m tests.training.test_loop` writes the golden curve anew.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference import plain_loop, plain_steps, tiny_run
from tests.reference.tiny_run import Batch, Run, Watcher, differing
from weightclass import config
from weightclass.augment.pipeline import Augment, Pipeline, check
from weightclass.data import loader
from weightclass.errors import UserError
from weightclass.training import loop, optim
from weightclass.training.checkpoint import Keeper
from weightclass.training.loop import Train
from weightclass.training.schedule import Constant, Cosine

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_run.json"


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


# --- the plain loop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "smoothing"),
    [
        ({"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-3}, 0.0),
        ({"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-3, "nesterov": True}, 0.1),
        ({"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}, 0.2),
    ],
)
def test_equals_the_plain_loop(tmp_path: Path, settings: dict[str, Any], smoothing: float) -> None:
    epochs = 4  # of three steps, the last of 8 images
    train = Train(epochs=epochs, batch_size=16, label_smoothing=smoothing, ema=0.8)
    run = Run(train, optim.SGD(decay_norms=True, **settings), Cosine(per="epoch"))
    model = tiny_run.model()
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    batches = [[(batch.images, batch.labels) for batch in run.batches(epoch)] for epoch in range(epochs)]
    watcher = Watcher()
    assert run.fit(tmp_path, watcher) is None
    means, history = plain_loop.train(model, batches, optimizer, scheduler, smoothing)
    assert run.state.step == 12
    assert_close(dict(run.state.model.state_dict()), history[-1], 1e-10)
    assert [epoch[:3] for epoch in watcher.epochs] == [
        (number, pytest.approx(loss, rel=1e-10), accuracy) for number, (loss, accuracy) in enumerate(means, 1)
    ]
    for name, tensor in run.state.evaluated.state_dict().items():
        if tensor.is_floating_point():
            expected = plain_loop.averaged([state[name] for state in history], 0.8)
            torch.testing.assert_close(tensor, expected, rtol=1e-10, atol=1e-10)


def test_watchers_and_rates(tmp_path: Path) -> None:
    run, watcher = Run(Train(epochs=2, batch_size=16), schedule=Cosine()), Watcher()
    run.fit(tmp_path, watcher)
    assert watcher.images == [16, 16, 8] * 2
    assert [(epoch[0], epoch[3]) for epoch in watcher.epochs] == [(1, run.rate(2)), (2, run.rate(5))]
    assert [group["lr"] for group in run.state.optimizer.param_groups] == [run.rate(5)] * 2
    assert run.state.evaluated is run.state.model
    assert run.state.sums.tolist() == [0, 0, 0]
    dropping, watcher = Run(Train(epochs=1, batch_size=16, drop_last=True)), Watcher()
    dropping.fit(tmp_path / "other", watcher)
    assert watcher.images == [16, 16]


# --- soft targets ------------------------------------------------------------------------------------------


class Soft(Run):
    def batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        for batch in super().batches(epoch, first):
            yield replace(batch, labels=F.one_hot(batch.labels, tiny_run.CLASSES).double())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("micro", [0, 8])
def test_certain_probabilities_train_as_labels_do(tmp_path: Path, smoothing: float, micro: int) -> None:
    train = Train(epochs=2, batch_size=16, micro_batch=micro, bn_group=4, label_smoothing=smoothing, ema=0.5)
    runs, watchers = (Run(train, dropout=0.2), Soft(train, dropout=0.2)), (Watcher(), Watcher())
    for number, (run, watcher) in enumerate(zip(runs, watchers, strict=True)):
        run.fit(tmp_path / str(number), watcher)
    assert_close(runs[0].tensors(), runs[1].tensors(), 1e-12)
    assert watchers[0].epochs == [pytest.approx(epoch, rel=1e-12) for epoch in watchers[1].epochs]


@pytest.mark.parametrize("micro", [0, 4])
def test_mixed_labels_have_the_loss_of_both_by_their_shares(micro: int) -> None:
    run = Run(Train(batch_size=16, micro_batch=micro, bn_group=4))
    batch, plain = next(run.batches(0)), tiny_run.model(group=4)
    share = torch.arange(16).double() % 5 / 4  # 0 and 1 are certain, 1/2 is a tie
    one, other = batch.labels, batch.labels.flip(0)
    kinds = F.one_hot(torch.stack([one, other]), tiny_run.CLASSES)
    mixed = share[:, None] * kinds[0] + (1 - share[:, None]) * kinds[1]
    logits = plain.train()(batch.images)
    losses = [F.cross_entropy(logits, labels, reduction="none") for labels in (one, other)]
    loss = (share * losses[0] + (1 - share) * losses[1]).mean()
    loss.backward()
    likeliest = torch.where(share == 0.5, torch.minimum(one, other), torch.where(share > 0.5, one, other))
    assert (one != other)[share == 0.5].any()
    loop.training_step(run.state, run.plan, replace(batch, labels=mixed), run.state.model)
    correct = (logits.argmax(1) == likeliest).sum().item()
    assert run.state.sums.tolist() == [pytest.approx(16 * loss.item(), rel=1e-12), correct, 16]
    for ours, theirs in zip(run.state.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)


# --- micro-batches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [32, 24, 25, 20, 5, 7])  # 25: a last image alone; 20: half a micro-batch
@pytest.mark.parametrize(("micro", "group"), [(4, 4), (8, 4), (16, 8)])
def test_micro_batches_change_nothing(count: int, micro: int, group: int) -> None:
    images, labels = tiny_run.pictures(count)
    batch = Batch(images.double() / 128 - 1, labels, torch.arange(count))
    runs = []
    for size in (0, micro):
        train = Train(batch_size=32, bn_group=group, micro_batch=size, ema=0.5, label_smoothing=0.1)
        run = Run(train, optim.SGD(lr=0.05), Constant(), dropout=0.3)
        for _ in range(2):
            loop.training_step(run.state, run.plan, batch, run.state.model)
        runs.append(run.tensors())
    assert_close(*runs, tolerance=1e-10)
    assert runs[0]["sums"][2] == 2 * count


def test_dropout_differs_from_step_to_step() -> None:
    run = Run(Train(batch_size=16), optim.SGD(lr=1e-9), dropout=0.5)
    batch = next(run.batches(0))
    losses = []
    for _ in range(3):
        before = run.state.sums[0].item()
        loop.training_step(run.state, run.plan, batch, run.state.model)
        losses.append(run.state.sums[0].item() - before)
    assert min(abs(a - b) for a, b in pairwise(losses)) > 1e-3


# --- SAM, clipping, Lookahead ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [optim.SGD(lr=0.05, decay_norms=True), optim.AdamW(), optim.Adadelta()])
@pytest.mark.parametrize(
    "settings", [{"sam": 0.1}, {"clip_norm": 0.5}, {"clip_value": 0.02}, {"sam": 0.5, "clip_norm": 0.5}]
)
def test_equals_the_steps_of_the_papers(tmp_path: Path, optimizer: Any, settings: dict[str, float]) -> None:
    run, watcher, model = Run(Train(epochs=2, batch_size=16, **settings), optimizer), Watcher(), tiny_run.model()
    theirs, losses = optim.build(optimizer, model.train()), []
    for batch in (batch for epoch in range(2) for batch in run.batches(epoch)):
        given = {"rho": settings.get("sam", 0.0), **{name: x for name, x in settings.items() if name != "sam"}}
        losses.append(plain_steps.sam_step(model, batch.images, batch.labels, theirs, **given))
    run.fit(tmp_path, watcher)
    assert_close(dict(run.state.model.state_dict()), dict(model.state_dict()), 1e-9)
    sums = [losses[0] * 16, sum(losses[:2]) * 16, sum(losses[:2]) * 16 + losses[2] * 8]
    assert watcher.losses[:3] == pytest.approx(sums, rel=1e-9)


@pytest.mark.parametrize("count", [32, 25, 20])
@pytest.mark.parametrize("settings", [{"sam": 0.2}, {"sam": 0.2, "clip_norm": 0.3}, {"clip_value": 0.01}])
def test_micro_batches_change_nothing_in_these_steps(count: int, settings: dict[str, float]) -> None:
    images, labels = tiny_run.pictures(count)
    batch = Batch(images.double() / 128 - 1, labels, torch.arange(count))
    runs = []
    for size in (0, 4):
        run = Run(Train(batch_size=32, bn_group=4, micro_batch=size, **settings), dropout=0.3)
        for _ in range(2):
            loop.training_step(run.state, run.plan, batch, run.state.model)
        runs.append(run.tensors())
    assert_close(*runs, tolerance=1e-10)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_second_pass_counts_nothing_and_moves_no_statistics(recompute: bool) -> None:
    runs = [Run(Train(batch_size=16, bn_group=4, sam=sam), dropout=0.3) for sam in (0.0, 0.5)]
    for run in runs:
        plan = replace(run.plan, recompute=recompute, micro_batch=8)
        loop.training_step(run.state, plan, next(run.batches(0)), run.state.model)
    weights = {f"model/{name}" for name, _ in runs[0].state.model.named_parameters()}
    assert set(differing(runs[0].tensors(), runs[1].tensors())) == weights  # neither buffers nor sums


def test_both_passes_drop_the_same() -> None:
    runs = [Run(Train(batch_size=16, sam=sam), dropout=0.5) for sam in (0.0, 1e-9)]
    for run in runs:
        loop.training_step(run.state, run.plan, next(run.batches(0)), run.state.model)
    assert_close(runs[0].tensors(), runs[1].tensors(), 1e-8)


def test_the_second_pass_computes_with_moved_weights_in_bfloat16_and_compiled() -> None:
    gradients = {}
    for sam, compiled in ((0.0, False), (0.5, False), (0.5, True)):
        run = Run(Train(batch_size=16, sam=sam))
        model, batch = run.state.model.float(), next(run.batches(0))
        forward = torch.compile(model, backend="aot_eager", dynamic=False) if compiled else model
        batch = replace(batch, images=batch.images.float())
        loop.training_step(run.state, replace(run.plan, precision="bfloat16"), batch, forward)
        gradients[sam, compiled] = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(gradients[0.5, True], gradients[0.5, False], rtol=0.1, atol=0.02)
    assert (gradients[0.5, False] - gradients[0.0, False]).abs().max() > 0.2


def test_the_device_is_not_waited_for_when_clipping() -> None:
    layer = torch.nn.Linear(3, 2, device="meta")  # where reading a number is an error
    for clip in ({"clip_norm": 0.1}, {"clip_value": 0.1}):
        run = Run(Train(batch_size=16, **clip))
        run.state.model, run.state.optimizer = layer, torch.optim.SGD(layer.parameters())
        run.state.sums = run.state.sums.to("meta")
        with torch.device("meta"):
            batch = Batch(torch.ones(16, 3), torch.zeros(16, dtype=torch.int64), torch.arange(16))
        loop.training_step(run.state, run.plan, batch, layer)


@pytest.mark.parametrize(("every", "alpha"), [(1, 0.5), (2, 0.8), (4, 0.5), (5, 1.0)])
@pytest.mark.parametrize(("micro", "group"), [(0, 0), (0, 4), (8, 4)])
def test_ends_on_the_slow_weights_and_their_statistics(
    tmp_path: Path, every: int, alpha: float, micro: int, group: int
) -> None:
    settings: dict[str, Any] = {"micro_batch": micro, "bn_group": group, "lookahead": every, "lookahead_alpha": alpha}
    run, watcher = Run(Train(epochs=2, batch_size=16, **settings), optim.SGD(lr=0.05, decay_norms=True)), Watcher()
    assert run.fit(tmp_path, watcher) is None
    model = tiny_run.model(group=group).train()
    theirs = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    batches = [(batch.images, batch.labels) for epoch in range(2) for batch in run.batches(epoch)]
    slow, losses = plain_steps.lookahead(model, batches, theirs, every, alpha)
    assert watcher.losses[2] == pytest.approx(sum(losses[:2]) * 16 + losses[2] * 8, rel=1e-10)
    assert [epoch[1] for epoch in watcher.epochs][1] == pytest.approx((sum(losses[3:5]) * 16 + losses[5] * 8) / 40)
    ended = tiny_run.model()
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(slow), ended.parameters())
    groups = [part for batch in run.batches(2) for part in batch.images.split(group or 16)]
    expected = dict(ended.named_parameters()) | plain_steps.statistics(ended, groups)
    judged = run.state.evaluated.state_dict()
    assert_close({name: judged[name] for name in expected}, expected, 1e-10)
    momenta = {module.momentum for module in run.state.model.modules() if hasattr(module, "momentum")}
    assert momenta == {0.1}


@pytest.mark.parametrize(("micro", "group"), [(0, 0), (0, 4), (8, 4)])
def test_ends_on_statistics_of_its_last_weights(tmp_path: Path, micro: int, group: int) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 16, "micro_batch": micro, "bn_group": group}
    moving, settled = Run(Train(**settings)), Run(Train(**settings, settle=True))
    for run in (moving, settled):
        assert run.fit(tmp_path / str(run.plan.train.settle)) is None
    groups = [part for batch in moving.batches(2) for part in batch.images.split(group or 16)]
    model = moving.state.model
    expected = dict(model.named_parameters()) | plain_steps.statistics(model, groups)
    judged = settled.state.evaluated.state_dict()
    assert_close({name: judged[name] for name in expected}, expected, 1e-10)
    assert not torch.allclose(judged["bn1.running_mean"], moving.state.model.state_dict()["bn1.running_mean"])


def test_slow_weights_that_would_never_move_are_refused(tmp_path: Path) -> None:
    assert Run(Train(epochs=1, batch_size=16, lookahead=3)).fit(tmp_path) is None
    with pytest.raises(UserError, match=r"train\.lookahead = 4: the whole training has only 3 steps"):
        Run(Train(epochs=1, batch_size=16, lookahead=4)).fit(tmp_path)


def test_ten_thousand_images_or_an_epoch_give_the_statistics() -> None:
    plan = Run(Train(batch_size=16, lookahead=5)).plan
    for size, steps, batches in ((16, 3, 3), (128, 390, 79), (1000, 50, 10), (20_000, 3, 1)):
        for settings in ({"lookahead": 5}, {"settle": True}):
            plan = replace(plan, train=Train(batch_size=size, **settings), steps_per_epoch=steps)  # type: ignore[arg-type]
            assert plan.settling == batches
    assert replace(plan, train=Train()).settling == 0


@pytest.mark.parametrize("settings", [{"lookahead": 4}, {"settle": True}])
def test_a_kill_while_the_statistics_are_measured_costs_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    runs = [Run(Train(epochs=2, batch_size=16, **settings), dropout=0.2) for _ in range(3)]
    runs[0].fit(tmp_path / "whole")
    served = runs[1].batches

    def killed(epoch: int, first: int = 0) -> Iterator[Batch]:
        for place, batch in enumerate(served(epoch, first)):
            if (epoch, place) == (2, 1):
                raise KeyboardInterrupt
            yield batch

    runs[1].batches = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        runs[1].fit(tmp_path / "killed")
    assert Keeper(tmp_path / "killed").load_latest(runs[2].state)
    assert runs[2].fit(tmp_path / "killed") is None
    assert not differing(runs[0].tensors(), runs[2].tensors())


# --- stopping ----------------------------------------------------------------------------------------------

FOLLOWED = ({"ema": 0.9}, {"lookahead": 4}, {"lookahead": 2, "sam": 0.1, "clip_value": 0.1})


@pytest.mark.parametrize("settings", FOLLOWED)
@pytest.mark.parametrize("step", [2, 3, 5, 6])  # 3 and 6 end an epoch
def test_stops_when_asked_and_goes_on_as_if_it_had_not(tmp_path: Path, step: int, settings: dict[str, Any]) -> None:
    train = Train(epochs=2, batch_size=16, **settings)
    whole, first, second = (Run(train, schedule=Cosine(), dropout=0.1) for _ in range(3))
    whole_seen, first_seen, second_seen = Watcher(), Watcher(stop_at=step), Watcher()
    assert whole.fit(tmp_path / "whole", whole_seen) is None
    assert first.fit(tmp_path / "cut", first_seen) == "asked"
    assert first.state.step == step
    assert Keeper(tmp_path / "cut").load_latest(second.state)
    assert second.fit(tmp_path / "cut", second_seen) is None
    assert not differing(whole.tensors(), second.tensors())
    assert first_seen.epochs + second_seen.epochs == whole_seen.epochs  # no record lost, none doubled
    assert first_seen.losses + second_seen.losses == whole_seen.losses


def spoil_weight(run_state: Any) -> None:
    if run_state.step == 2:
        run_state.model.linear.weight.data[0, 0] = float("nan")


@pytest.mark.parametrize("every", [1e9, 1e-9])
@pytest.mark.parametrize("stop_at", [-1, 2])
def test_a_diverged_run_stops_before_it_is_saved(tmp_path: Path, every: float, stop_at: int) -> None:
    run = Run(Train(epochs=2, batch_size=16), optim.SGD(lr=0.3), Constant())
    with pytest.raises(UserError, match=r"no longer a number at step \d .*lr 0\.3\).*optimizer\.lr=0\.1\)"):
        run.fit(tmp_path, Watcher(stop_at=stop_at, spoil=spoil_weight), every)
    for path in tmp_path.iterdir():
        assert path.name.startswith("000000001-")  # the step before the weight was spoilt


def test_a_rate_that_is_far_too_high_is_told(tmp_path: Path) -> None:
    run = Run(Train(epochs=30, batch_size=16), optim.SGD(lr=100.0, momentum=0.99, weight_decay=1.0))
    with pytest.raises(UserError, match=r"try a third of the rate \(optimizer.lr=33\)"):
        run.fit(tmp_path)


# --- memory ------------------------------------------------------------------------------------------------


@pytest.fixture
def _small_heap() -> Iterator[None]:
    gc.freeze()  # the loop collects garbage between its attempts: not all of torch each time
    yield
    gc.unfreeze()


def scarce(run: Run, room: int, where: str = "forward") -> Callable[[int], None]:
    """Let each pass run out of memory whose images, at four units each or one where blocks are computed twice, exceed
    `room` units; by then it has moved the running statistics. Returns what changes the room."""
    rooms = [room]

    def fail(gradient: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def check(model: Any, _: Any, logits: Tensor) -> None:
        if len(logits) * (1 if model.layer1[0].recompute else 4) > rooms[-1]:
            logits.register_hook(fail) if where == "backward" else fail(logits)

    run.state.model.register_forward_hook(check)
    return rooms.append


LADDERS = [  # (images of a step and of a group, room, norm, what is tried until it fits, where memory runs out)
    (16, 4, 64, "batch", [], "forward"),
    (16, 4, 16, "batch", [(8, False), (4, False)], "backward"),
    (16, 4, 15, "batch", [(8, False), (4, False), (4, True)], "forward"),
    (24, 8, 50, "batch", [(8, False)], "forward"),  # half of 24 would divide a group
    (16, 0, 63, "batch", [(0, True)], "backward"),
    (25, 0, 48, "none", [(12, False), (6, False)], "forward"),  # 12 fit, then 13 do not
    (16, 0, 7, "none", [(8, False), (4, False), (2, False), (2, True)], "backward"),
]


@pytest.mark.usefixtures("_small_heap")
@pytest.mark.parametrize(("images", "group", "room", "norm", "cuts", "where"), LADDERS)
def test_a_step_too_large_for_memory_is_cut(
    tmp_path: Path, images: int, group: int, room: int, norm: str, cuts: list[tuple[int, bool]], where: str
) -> None:
    micro, recompute = cuts[-1] if cuts else (0, False)
    train = Train(epochs=2, batch_size=images, bn_group=group, ema=0.5)
    twin_train = Train(epochs=2, batch_size=images, bn_group=group or micro, micro_batch=micro, ema=0.5)
    settings: dict[str, Any] = {"dropout": 0.3, "norm": norm}
    run, by_hand, resumed = Run(train, **settings), Run(twin_train, **settings), Run(train, **settings)
    watchers = Watcher(), Watcher(), Watcher()
    scarce(run, room, where)
    assert run.fit(tmp_path / "cut", watchers[0]) is None
    assert watchers[0].cuts == cuts[-1:]  # told once it fits
    assert by_hand.fit(tmp_path / "by hand", watchers[1]) is None
    assert not differing(run.tensors(), by_hand.tensors())
    assert watchers[0].losses == watchers[1].losses
    scarce(resumed, room, where)  # as a later sitting, which knows from the start
    resumed.plan = replace(resumed.plan, micro_batch=micro, recompute=recompute)
    assert resumed.fit(tmp_path / "resumed", watchers[2]) is None
    assert watchers[2].cuts == []
    assert not differing(run.tensors(), resumed.tensors())


@pytest.mark.usefixtures("_small_heap")
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_second_pass_too_large_for_memory_is_cut(tmp_path: Path, where: str) -> None:
    """With the weights moved a pass takes more than without: only there does memory run out."""
    train = Train(epochs=2, batch_size=16, bn_group=4, sam=0.3)
    run, by_hand = Run(train, dropout=0.3), Run(msgspec.structs.replace(train, micro_batch=4), dropout=0.3)
    watchers, weight = (Watcher(), Watcher()), run.state.model.get_parameter("linear.weight")
    at_rest = [weight.detach().clone()]
    watchers[0].spoil = lambda _: at_rest.append(weight.detach().clone())

    def fail(gradient: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def check(_: Any, __: Any, logits: Tensor) -> None:
        if len(logits) > 4 and not torch.equal(weight, at_rest[-1]):
            logits.register_hook(fail) if where == "backward" else fail(logits)

    run.state.model.register_forward_hook(check)
    assert run.fit(tmp_path / "cut", watchers[0]) is None
    assert by_hand.fit(tmp_path / "by hand", watchers[1]) is None
    assert watchers[0].cuts == [(4, False)]
    assert not differing(run.tensors(), by_hand.tensors())
    assert watchers[0].losses == watchers[1].losses


@pytest.mark.parametrize(("group", "hint"), [(0, ", train.bn_group=20 (which lets the batch be cut)"), (8, "")])
@pytest.mark.usefixtures("_small_heap")
def test_the_end_of_the_ladder(tmp_path: Path, group: int, hint: str) -> None:
    run, watcher = Run(Train(batch_size=40, bn_group=group)), Watcher()
    scarce(run, 2)
    with pytest.raises(UserError) as caught:
        run.fit(tmp_path, watcher)
    cure = f"choose a smaller train.batch_size{hint} or a smaller network"
    assert str(caught.value) == f"not enough memory for a step of 40 images: {cure}"
    assert watcher.cuts == []


@pytest.mark.usefixtures("_small_heap")
def test_the_first_two_steps_of_each_size_may_be_cut(tmp_path: Path) -> None:
    train = Train(epochs=3, batch_size=16, bn_group=4)  # steps of 16, 16 and 8 images
    first, second, watcher = Run(train), Run(train), Watcher()
    scarce(first, 64)
    first.fit(tmp_path, Watcher(stop_at=2))
    assert Keeper(tmp_path).load_latest(second.state)
    shrink = scarce(second, 64)
    rooms = {3: 63, 4: 31, 5: 31, 6: 0}  # after the first step of this sitting, a short one, and so on
    watcher.spoil = lambda state: shrink(rooms[state.step])
    with pytest.raises(
        UserError, match=r"out of memory at step 7, though earlier steps fitted: .* the last checkpoint"
    ):
        second.fit(tmp_path, watcher, every=1e-9)
    assert watcher.cuts == [(8, False), (4, False)]
    assert max(path.name for path in tmp_path.iterdir()).startswith("000000006-")


def test_running_out_of_memory_around_the_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Train(batch_size=16))
    monkeypatch.setattr(run.state.optimizer, "step", lambda: torch.empty(2**60))
    with pytest.raises(UserError, match="not enough memory for a step of 16 images"):
        run.fit(tmp_path)


def test_other_errors_are_not_taken_for_it(tmp_path: Path) -> None:
    run, watcher = Run(Train(batch_size=16)), Watcher()
    run.state.model.register_forward_hook(lambda *_: torch.ones(2, 3) @ torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run.fit(tmp_path, watcher)
    assert watcher.cuts == []


REALLY_SCARCE = """
import resource, sys
from pathlib import Path
from tests.reference.tiny_run import Run, Train, Watcher, differing

class Large(Run):
    def seen(self, images, step, slots):
        return super().seen(images, step, slots).repeat_interleave(12, 2).repeat_interleave(12, 3)

def limit(room):
    size = next(line for line in open("/proc/self/status") if line.startswith("VmSize"))
    most = 1024 * int(size.split()[1]) + room if room else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

folder, watcher = Path(sys.argv[1]), Watcher()
train = dict(epochs=1, batch_size=32, bn_group=2)
Run(Train(**train)).fit(folder / "warm")
run = Large(Train(**train))
limit(60 * 2**20)
run.fit(folder / "cut", watcher)
limit(0)
assert watcher.cuts and watcher.cuts[0][0] in (16, 8, 4, 2), watcher.cuts
twin = Large(Train(**train, micro_batch=watcher.cuts[-1][0]))
twin.fit(folder / "by hand")
assert not differing(run.tensors(), twin.tensors())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process to its address space")
def test_memory_that_really_runs_out(tmp_path: Path) -> None:
    command = [sys.executable, "-c", REALLY_SCARCE, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, check=True, timeout=120)


# --- CUDA graphs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("micro", "sam"), [(0, 0.0), (8, 0.0), (0, 0.1), (8, 0.1)])
def test_a_graph_never_finds_gradients_in_its_own_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int, sam: float
) -> None:
    train = Train(epochs=1, batch_size=16, micro_batch=micro, bn_group=8, sam=sam, drop_last=True)
    plain, run = Run(train, dropout=0.2), Run(train, dropout=0.2)
    plain.fit(tmp_path / "plain")
    marked, modes, found = [0], [], []
    left: list[Tensor] = []  # by the last launch, which the next one would overwrite

    def compile_(model: torch.nn.Module, dynamic: bool, mode: str | None) -> Callable[[Tensor], Tensor]:
        modes.append((dynamic, mode))
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: left.append(gradient.detach()))

        def launch(images: Tensor) -> Tensor:
            assert marked[0] == len(found) + 1
            gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            found.append(len(gradients))
            assert not {gradient.data_ptr() for gradient in gradients} & {gradient.data_ptr() for gradient in left}
            left.clear()
            return model(images)

        return launch

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.__setitem__(0, marked[0] + 1))
    run.plan = replace(run.plan, compile=True, graphs=True)
    run.fit(tmp_path / "graphs")
    assert modes == [(False, "reduce-overhead")]
    own = len(list(run.state.model.parameters())) if micro else 0
    assert found == [own] * 2 * (1 + bool(micro)) * (1 + bool(sam))
    assert not differing(run.tensors(), plain.tensors())


# --- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"epochs": 0}, "epochs = 0: expected int >= 1"),
        ({"batch_size": 1}, "batch_size = 1: expected int >= 2"),
        ({"ema": 1.0}, "ema = 1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing = 1.0"),
        ({"seed": -1}, "seed = -1"),
        ({"checkpoint_seconds": 0.0}, "checkpoint_seconds = 0.0"),
        ({"epoch": 3}, "unknown key epoch: did you mean epochs?"),
        ({"clip_norm": -1.0}, "clip_norm = -1.0"),
        ({"clip_value": -1.0}, "clip_value = -1.0"),
        ({"sam": -0.1}, "sam = -0.1"),
        ({"lookahead": -5}, "lookahead = -5"),
        ({"lookahead_alpha": 0.0}, "lookahead_alpha = 0.0: expected float > 0"),
        ({"lookahead_alpha": 1.5}, "lookahead_alpha = 1.5: expected float <= 1"),
        ({"clip_norm": 1.0, "clip_value": 0.1}, "both bound the gradient: set one of them to 0"),
        ({"lookahead": 5, "ema": 0.9}, "lookahead and ema both average the weights"),
        ({"settle": True, "ema": 0.9}, "settle measures running statistics, which ema averages"),
        ({"micro_batch": 256}, "and at most batch_size"),
        ({"bn_group": 256}, "and at most batch_size"),
        ({"micro_batch": 32}, "bn_group (128) must divide micro_batch (32)"),
        ({"micro_batch": 32, "bn_group": 24}, "bn_group (24) must divide micro_batch (32)"),
        ({"micro_batch": 1}, "must be 0 or at least 2 (one image has no batch statistics)"),
        ({"micro_batch": 4, "bn_group": 1}, "must be 0 or at least 2 (one image has no batch statistics)"),
    ],
)
def test_refuses(mistake: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        config.build(mistake, Train, "train")
    assert message in str(caught.value)


def test_accepts() -> None:
    for good in (
        {"micro_batch": 32, "bn_group": 32},
        {"micro_batch": 32, "bn_group": 8},
        {"bn_group": 8},
        {"ema": 0.9, "sam": 0.1},
        {},
    ):
        assert config.build(good, Train, "train").epochs == 30


# --- the golden curve --------------------------------------------------------------------------------------


def golden_curve(folder: Path) -> list[float]:
    """Loss of each of 21 steps through augmentation, groups, micro-batches, dropout, smoothing and schedule."""
    train = Train(epochs=7, batch_size=16, micro_batch=8, bn_group=4, label_smoothing=0.1, ema=0.9, seed=1)
    run = Run(train, optim.SGD(lr=0.05, nesterov=True), Cosine(warmup=1), dropout=0.1)
    operations = check(Augment(ops=("crop(1)", "flip", "cutout(2)")), (3, 8, 8))
    pipeline = Pipeline(operations, (0.4,) * 3, (0.25,) * 3, 1, torch.device("cpu"), (3, 8, 8), 4)

    def seen(images: Tensor, step: int, slots: Tensor) -> Tensor:
        batch = loader.Batch(images, slots, slots, slots)
        return pipeline.normalise(pipeline.augment(batch, 0, step).images).double().contiguous()

    run.seen = seen  # type: ignore[method-assign]
    watcher = Watcher()
    run.fit(folder, watcher)
    losses = []
    for step, (total, images) in enumerate(zip(watcher.losses, watcher.images, strict=True)):
        before = watcher.losses[step - 1] if step % run.plan.steps_per_epoch else 0.0
        losses.append((total - before) / images)
    return losses


def test_golden_curve(tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden_curve(tmp_path) == pytest.approx(expected, rel=1e-9)
    assert sum(expected[-3:]) < 0.9 * sum(expected[:3])  # and it learns


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(golden_curve(Path(folder)), indent=1) + "\n", encoding="utf-8")
