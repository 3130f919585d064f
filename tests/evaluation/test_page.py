"""The page: written whole or not at all, the same every time, and its style does not leak."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
import torch

from tests.reference.pictures import ramp, read
from weightclass.evaluation import charts, grids
from weightclass.evaluation.page import page


def test_an_error_leaves_the_old_picture_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), page(path, "new", 400, 300):
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with page(path, "new", 400, 300):
        pass
    assert read(path).shape == (352, 400, 3) and list(tmp_path.iterdir()) == [path]


def test_style_does_not_leak(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    charts.curves([{"epoch": 1, "lr": 0.1}], tmp_path / "curves.png", "a run")
    assert dict(matplotlib.rcParams) == before


def test_same_picture_twice_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        grids.samples([(ramp(2, 3, 8, 8), torch.arange(2))], ["a", "b"], tmp_path / name, "a grid")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
