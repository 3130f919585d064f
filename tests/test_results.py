"""result.json reads back to what was written; a foreign one is told; the table says what counts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from weightclass import results
from weightclass.errors import UserError
from weightclass.results import Result, Scorecard

CLASSES = {"cat": (0.5, 2), "[dog]": (1.0, 1), "née": (1.0, 1), "absent": (None, 0)}
FACTS = {
    "n": 4,
    "correct": 3,
    "accuracy": 0.75,
    "interval": [0.3006, 0.9544],
    "top5": None,
    "nll": 0.8,
    "ece": 0.1,
    "bins": [],
    "macro": {"n": 4, "precision": 0.5, "recall": 0.8, "f1": 0.6},
    "per_class": {name: {"n": n, "precision": 0.5, "recall": share, "f1": 0.5} for name, (share, n) in CLASSES.items()},
    "confusion": [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
}
CARD = msgspec.convert(FACTS, Scorecard)
RESULT = Result(
    name="quickstart",
    command="weightclass train quickstart",
    fingerprint="0123456789abcdef",
    version="0.1.0",
    seed=0,
    split="test",
    test_readings=1,
    scorecard=CARD,
    averaged=True,
    computed_on="cpu, 2 threads, float32",
    params=4_978_810,
    macs=1_180_000_000,
    train_pflops=106.2,
    epochs=300,
    seconds=12_345.6,
    images_per_second=1234.5,
    waiting=0.012,
    augmenting=0.025,
    saving=0.003,
    peak_memory=2_000_000_000,
    model_bytes=19_950_000,
)


def shown(result: Result) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(results.table(result, Path("runs", "quickstart-01234567")))
    return out.getvalue()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert results.read(tmp_path) is None
    results.write(tmp_path, RESULT)
    assert results.read(tmp_path) == RESULT
    tree = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert list(tree) == list(Result.__struct_fields__)
    assert tree["scorecard"]["per_class"]["née"] == {"n": 1, "precision": 0.5, "recall": 1.0, "f1": 0.5}


def test_a_result_of_before_augmentation_was_timed_is_read(tmp_path: Path) -> None:
    results.write(tmp_path, RESULT)
    path = tmp_path / "result.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    del tree["augmenting"]
    path.write_text(json.dumps(tree), encoding="utf-8")
    earlier = results.read(tmp_path)
    assert earlier and earlier == msgspec.structs.replace(RESULT, augmenting=0.0)
    assert "augmentation        part of the waiting" in shown(earlier)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"name": "a"}', b'{"split": "train"}'])
def test_a_foreign_result_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(UserError, match=r"result.json: not a result of this version .*; move the folder away") as error:
        results.read(tmp_path)
    assert "\n" not in str(error.value)


def test_the_table_tells_what_counts() -> None:
    text = shown(RESULT)
    for part in (
        "test accuracy       75.00%  (95 %: 30.06% to 95.44%, 4 images)",
        "moving average",
        "4,978,810",
        "1,180.0 M",
        "20.0 MB",
        "3 h 25 min, 300 epochs, 1,234 img/s, 106 PFLOPs",
        "augmentation        2.5% of it",
        "waiting for data    1.2% of it",
        "saving checkpoints  0.3% of it",
        "2.00 GB",
        "1 time ",
        "quickstart-01234567",
    ):
        assert part in text, part


def test_the_table_of_a_validated_run() -> None:
    text = shown(msgspec.structs.replace(RESULT, split="validation", test_readings=0, averaged=False))
    assert "validation accuracy" in text
    assert "last step" in text
    assert "0 times" in text


def test_names_are_not_markup() -> None:
    odd = msgspec.structs.replace(RESULT, name="mine[/]")
    assert "mine[/]" in shown(odd)
