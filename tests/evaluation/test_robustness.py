"""Accuracies under corruption on a terminal and as a picture."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console

from tests.reference.pictures import read
from weightclass.evaluation import robustness
from weightclass.evaluation.corruptions import KINDS
from weightclass.evaluation.robustness import GROUPS, Robustness

ACCURACIES = {kind: tuple(0.9 - 0.01 * i - 0.1 * s for s in range(5)) for i, kind in enumerate(KINDS)}
MEAN = float(np.mean(list(ACCURACIES.values())))
FOUND = Robustness(model="net", split="test", n=10_000, clean=0.95, mean=MEAN, kinds=ACCURACIES)


def test_the_table_has_a_row_for_each_kind_and_the_means() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(robustness.table(FOUND))
    lines = [" ".join(line.split()) for line in captured.get().splitlines() if line.strip(" ─")]
    assert lines[0] == "95.00% clean, 63.00% corrupted, 10,000 test images"
    assert lines[2] == "noise gaussian noise 90.00 80.00 70.00 60.00 50.00 70.00"
    assert lines[-1] == "mean 83.00 73.00 63.00 53.00 43.00 63.00"
    assert [line.split()[0] for line in lines[2:-1]] == list(GROUPS) and len(GROUPS) == len(KINDS)


def test_json_comes_back() -> None:
    assert msgspec.json.decode(msgspec.json.encode(FOUND), type=Robustness) == FOUND


@pytest.mark.parametrize("shape", [(1, 8, 8), pytest.param((3, 80, 60), marks=pytest.mark.slow)])
def test_the_picture_is_darker_where_more_is_lost(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    robustness.draw(FOUND, torch.full(shape, 128, dtype=torch.uint8), tmp_path / "robustness.png")
    picture = read(tmp_path / "robustness.png").astype(float)
    high, wide = picture.shape[:2]
    first, last = (picture[high - 12 - 5, wide - 12 - column * 148 - 10] for column in (4, 0))
    assert first.sum() > last.sum() + 100
