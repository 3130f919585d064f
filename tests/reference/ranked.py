"""Twenty steps of a tiny training in float64, on however many ranks torchrun starts: `ranked.py FILE SETTING...`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from weightclass import ranks, recipe
from weightclass.batching import Batch
from weightclass.data import sources
from weightclass.session import Session
from weightclass.training.loop import training_step

STEPS = 20
TINY = (
    *("quickstart", "model.blocks=1,1", "model.channels=4,8", "data.subset=130", "train.batch_size=50"),
    *("train.epochs=7", "machine.threads=1", "schedule.warmup=0", "model.dropout=0.1"),  # the last batch has 30 images
)
VARIANTS = {
    "all": (),
    "groups": ("train.bn_group=10",),
    "mixup": ("augment.ops=crop(1),mixup(0.4)", "train.bn_group=5"),
    "micro": ("train.bn_group=5", "train.micro_batch=10", "train.clip_norm=1"),
    "sam": ("train.sam=0.05",),
    "sam, groups": ("train.sam=0.05", "train.bn_group=10"),
    "too short": (
        "train.bn_group=25",
        "train.batch_size=100",
        "train.drop_last=false",
    ),  # 30 images: one unit of two groups
    "lookahead": ("train.ema=0", "train.lookahead=3", "train.bn_group=10"),
}


def double(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield replace(batch, images=batch.images.double())


def trained(folder: Path, *settings: str) -> dict[str, Tensor]:
    """Weights, buffers, what follows them, and the epoch's sums, at the end."""
    named = recipe.load(*{word.partition("=")[0]: word for word in (*TINY, *settings)}.values())
    found = sources.find(named.recipe.data)
    session = Session(named, recipe.weigh(named.recipe, found), found.load(None), folder, quiet=True)
    state, plan = session.state, session.plan
    followers = {"average": state.average and state.average.twin, "slow": state.lookahead and state.lookahead.slow}
    nets = {"model": state.model} | {name: net for name, net in followers.items() if net}
    for net in nets.values():
        net.double()
    while state.step < STEPS:
        epoch, first = divmod(state.step, plan.steps_per_epoch)
        state.model.train()
        for batch in double(session.batches(epoch, first)):
            training_step(state, plan, batch, state.model)
            if state.step == STEPS:
                break
    tensors = {f"{part}/{name}": tensor for part, net in nets.items() for name, tensor in net.state_dict().items()}
    return tensors | {"sums": state.sums}


if __name__ == "__main__":
    with ranks.joined(), tempfile.TemporaryDirectory() as folder:
        tensors = {name: trained(Path(folder, name), *settings) for name, settings in VARIANTS.items()}
        if not ranks.here.rank:
            torch.save(tensors, sys.argv[1])
