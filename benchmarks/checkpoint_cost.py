"""What checkpoints cost a training.

    python benchmarks/checkpoint_cost.py

Prints, for both of the paper's networks with SGD's momentum and an averaged twin, a checkpoint's size, the median time
of 7 saves (hash, write, sync) on the current folder's disk, and its share of the 60 s between two of them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from weightclass.model import networks
from weightclass.model.resnet import ResNetConfig
from weightclass.training import optim
from weightclass.training.averaging import Average
from weightclass.training.checkpoint import Keeper
from weightclass.training.loop import State

SAVES, EVERY_SECONDS = 7, 60.0
NETWORKS = (
    ResNetConfig(),
    ResNetConfig(blocks=(3, 3, 3, 3), channels=(128, 100, 164, 200)),
)


def trained(config: ResNetConfig) -> State:
    """A state as after a step: the momentum of every weight is there."""
    model = networks.build(config, (3, 32, 32), 10, seed=0).to(memory_format=torch.channels_last)
    state = State(model, optim.build(optim.SGD(nesterov=True), model), Average(model, 0.995))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    return state


def saves(state: State, folder: Path) -> tuple[list[float], int]:
    """Seconds of each save, and the bytes of one."""
    keeper, seconds, size = Keeper(folder), [], 0
    for step in range(SAVES):
        state.step = step + 1
        start = time.perf_counter()
        path = keeper.save(state)
        seconds.append(time.perf_counter() - start)
        size = path.stat().st_size
    return seconds, size


def main() -> None:
    from rich import box
    from rich.table import Table

    from weightclass.runlog import console, human_bytes

    grid = Table(box=box.MARKDOWN, title=f"Checkpoints, median of {SAVES} saves", title_justify="left")
    for column in ("parameters", "size", "seconds (least..most)", f"of {EVERY_SECONDS:g} s"):
        grid.add_column(column)
    for config in NETWORKS:
        state = trained(config)
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".checkpoint-cost-") as folder:
            seconds, size = saves(state, Path(folder))
        middle = statistics.median(seconds)
        count = sum(p.numel() for p in state.model.parameters())
        times = f"{middle:.3f} ({min(seconds):.3f}..{max(seconds):.3f})"
        grid.add_row(f"{count:,}", human_bytes(size), times, f"{middle / EVERY_SECONDS:.2%}")
    console().print(grid)


if __name__ == "__main__":
    main()
