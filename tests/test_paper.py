"""The paper's network on the paper's images: too slow for every day, too important to leave untried."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import weightclass as wc


@pytest.mark.slow
@pytest.mark.skipif("WEIGHTCLASS_DATA" not in os.environ, reason="needs the real CIFAR-10: set WEIGHTCLASS_DATA")
def test_twenty_steps_of_the_97_percent_run(tmp_path: Path) -> None:
    """Two epochs of ten steps, judged on images held out, so that the test set stays unread."""
    short = ("data.subset=1280", "data.validation=100", "train.epochs=2")
    outcome = wc.train("paper-97", *short, out=tmp_path, quiet=True)
    assert outcome.result is not None
    assert (outcome.result.params, outcome.result.test_readings) == (4_978_810, 0)
    lines = (outcome.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["step"], second["step"]) == (10, 20)
    assert second["train_loss"] < 0.8 * first["train_loss"]
