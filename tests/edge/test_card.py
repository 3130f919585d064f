"""A card says nothing that is not so, and any class name survives Markdown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from msgspec import structs

from weightclass import recipe
from weightclass.edge import card
from weightclass.edge.export import Handed
from weightclass.edge.gate import compare
from weightclass.edge.latency import Timing
from weightclass.evaluation.metrics import scorecard
from weightclass.model import networks
from weightclass.modelfile import Classifier

NAMES = ("a|b", "<i>c", "`d`*e*", "日本 é\n_f_")


def test_the_card(tmp_path: Path) -> None:
    settings = recipe.load("quickstart", "model.blocks=1,1", "model.channels=4,8").recipe
    network = networks.build(settings.model, (3, 8, 8), 4, seed=3)
    facts = {"fingerprint": "0123456789"}
    model = Classifier(network, settings, "net", NAMES, (3, 8, 8), (0.5,) * 3, (0.25,) * 3, facts)
    logits, labels = torch.eye(4).repeat(5, 1), torch.arange(20) % 4
    agreed = compare(logits, logits, labels)
    handed = Handed(
        format="onnx-int8",
        path=tmp_path / "net-int8.onnx",
        bytes=1234,
        setting="a scale a channel",
        refused=["a scale a tensor: top-1 agreement 91.00%, wanted 98.00%"],
        gated_on="validation images",
        gate=agreed,
        judged_on="other",
        judged=agreed,
        scorecard=scorecard(logits, labels, NAMES),
    )
    text = card.write(model, handed, Timing(0.5, 0.75, 9), "Chip").read_text(encoding="utf-8")
    for row in (r"| 0 | a\|b |", r"| 1 | \<i\>c |", r"| 2 | \`d\`\*e\* |", r"| 3 | 日本 é \_f\_ |"):
        assert row in text
    assert "on 20 other images" in text
    assert "- the gate, on validation images, none that int8 is calibrated on: 100.00%" in text
    assert "- refused before it: a scale a tensor" in text
    assert "run 01234567, data `digits`" in text
    assert "## Recipe" in text
    for name, shape in {
        "onnx": "[n, 3, H, W]",
        "openvino-int8": "[n, 3, 8, 8]",
        "executorch": "[1, 3, 8, 8]",
        "litert": "[1, 8, 8, 3]",
    }.items():
        other = structs.replace(handed, format=name)
        assert f"pixels {shape}, RGB" in card.write(model, other, Timing(1, 1, 1), "Chip").read_text(encoding="utf-8")
    published = replace(model, facts={"published": True})
    text = card.write(published, handed, Timing(0.5, 0.75, 9), "Chip").read_text(encoding="utf-8")
    assert "published weights" in text
    assert "digits" not in text  # what it was trained on, and how, is its owner's knowledge
    assert "## Recipe" not in text
