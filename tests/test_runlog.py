"""metrics.jsonl rewinds to a step; the meter's speed, ETA and lines; numbers as people write them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from weightclass.runlog import Meter, Metrics, console, human_bytes, human_seconds


def record(epoch: int) -> dict[str, object]:
    return {"epoch": epoch, "step": 10 * epoch, "time": {"seconds": 1.5}}


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for epoch in (1, 2):
        metrics.append(record(epoch))
        assert lines(path) == metrics.records == [record(number) for number in range(1, epoch + 1)]
    assert Metrics(path).records == metrics.records


@pytest.mark.parametrize(("step", "kept"), [(0, 0), (9, 0), (10, 1), (29, 2), (30, 3), (1000, 3)])
def test_rewinding_forgets_what_will_be_written_again(tmp_path: Path, step: int, kept: int) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for epoch in (1, 2, 3):
        metrics.append(record(epoch))
    metrics.rewind(step)
    assert lines(path) == metrics.records == [record(number) for number in range(1, kept + 1)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (3900, "1 h 05 min"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (2_805_864, "2.81 MB"), (7e9, "7.00 GB"), (7e12, "7000 GB")],
)
def test_bytes(count: float, text: str) -> None:
    assert human_bytes(count) == text


class Clock:
    """A hand-moved time.perf_counter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def test_speed_leaves_evaluation_out_and_eta_counts_this_session_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter(steps=100, done=40, epochs=10, quiet=True)
    for step in range(41, 51):
        clock.now += 2
        meter.stepped(step, images=64)
    clock.now += 10
    meter.paused += 10
    assert meter.seconds == 30
    assert meter.speed == 640 / 20
    assert meter.eta == 50 * 30 / 10


def test_a_meter_at_rest_divides_by_nothing() -> None:
    meter = Meter(steps=10, done=10, epochs=1, quiet=True)
    assert meter.speed == 0
    assert meter.eta == 0


def test_an_epoch_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(steps=100, done=0, epochs=10)
    row = {"epoch": 3, "step": 30, "train_loss": 1.23456, "train_accuracy": 0.5, "lr": 0.1, "test_accuracy": 0.9712}
    meter.epoch(row)
    meter.say("[bold]not markup[/]")
    meter.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch  3/10  loss 1.2346  train 50.00 %  test 97.12 %  lr 0.1000  0 img/s  ETA ")
    assert second == "[bold]not markup[/]"


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(steps=100, done=0, epochs=10, quiet=True)
    meter.stepped(1, 64)
    meter.epoch(record(1) | {"train_loss": 1.0, "train_accuracy": 0.5, "lr": 0.1})
    meter.say("nothing")
    meter.close()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    meter = Meter(steps=100, done=0, epochs=10)
    meter.stepped(55, 64)
    meter._bar.refresh()
    meter.close()
    meter.close()
    text = capsys.readouterr().out
    assert "epoch 6/10" in text
    assert "55 %" in text


def test_without_a_terminal_tables_are_120_wide() -> None:
    assert console().width == 120
