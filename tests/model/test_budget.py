from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from weightclass import config
from weightclass.errors import UserError
from weightclass.model import budget
from weightclass.model.budget import Budget, check, grouped, short, table, weigh
from weightclass.model.mobilenet import MobileNetV2Config
from weightclass.model.networks import build
from weightclass.model.resnet import ResNetConfig

CIFAR = (3, 32, 32)
PAPER = ResNetConfig(blocks=(3, 3, 3, 3), channels=(128, 100, 164, 200))
VARIANTS = [
    (ResNetConfig(), CIFAR),
    (ResNetConfig(blocks=(1, 2), channels=(5, 7), kernels=(3, 5), skip_kernels=3, pool="global"), (1, 9, 14)),
    (ResNetConfig(blocks=(1, 2), channels=(8, 8), downsample="avgpool", norm="none", pool="max(2)"), (4, 8, 8)),
    (ResNetConfig(blocks=(2, 1), channels=(8, 6), stem_channels=4, preactivation=True, se="blocks"), (3, 10, 8)),
    (MobileNetV2Config(width=0.3), (1, 9, 14)),
]


def test_the_papers_network():
    weights = weigh(build(PAPER, CIFAR, 10), CIFAR)
    assert weights.params == 4_978_810
    assert round(weights.macs / 1e9, 2) == 1.18
    assert sum(row.macs for row in weights.rows) == weights.macs


@pytest.mark.parametrize(("settings", "shape"), VARIANTS)
def test_macs_are_half_of_torchs_flops(settings, shape):
    model = build(settings, shape, 10)
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, *shape, device="meta"))
    assert weigh(model, shape).macs * 2 == counter.get_total_flops()


@pytest.mark.parametrize(("settings", "shape"), VARIANTS)
def test_parameters_and_bytes(settings, shape):
    model = build(settings, shape, 10)
    weights = weigh(model, shape)
    assert weights.params == sum(p.numel() for p in model.parameters())
    for key in ("params", "macs", "bytes_fp32", "bytes_fp16", "bytes_int8"):
        assert getattr(weights, key) == sum(getattr(row, key) for row in weights.rows)
    assert max(row.activations for row in weights.rows) == weights.activations
    floats = [t.numel() for t in model.state_dict().values() if t.is_floating_point()]
    assert weights.bytes_fp32 == 4 * sum(floats)
    assert weights.bytes_fp16 == 2 * sum(floats)


def test_int8_bytes_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5), nn.PReLU())
    weights = weigh(model.to("meta"), (3, 3, 3))
    assert weights.bytes_int8 == (216 + 8 * 8) + 0 + (40 + 5 * 8) + 4


@pytest.mark.parametrize(("preactivation", "last"), [(True, {"bn_last"}), ("blocks", set())])
def test_int8_bytes_of_norms_that_no_convolution_takes_over(preactivation, last):
    """In a preactivation block the norm between the convolutions folds into the first; those before them are kept."""
    settings = ResNetConfig(blocks=(1, 1), channels=(8, 8), preactivation=preactivation, pool="global")
    norms = {row.name: row for row in weigh(build(settings, CIFAR, 10), CIFAR).rows if row.kind == "norm"}
    kept = {"layer1.0.bn1", "layer2.0.bn1"} | last
    assert ({"bn1", "layer2.0.shortcut.1"} < norms.keys()) == (not last)
    assert {name: row.bytes_int8 for name, row in norms.items()} == {name: 64 * (name in kept) for name in norms}


def test_peak_activations_by_hand():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(10, 100, bias=False), nn.Linear(100, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.wide(x)  # live: x, y
            y = torch.relu(y)  # live: x, y, relu(y): the peak
            y.add_(1).view(-1)  # in place, and a view: nothing new
            return self.narrow(y)  # live: x, y, result

    assert weigh(Twice().to("meta"), (10,)).activations == 4 * (10 + 100 + 100)  # type: ignore[arg-type]


def test_peak_activations_of_a_block():
    """At the stem's end, and at each norm of an identity block: the map before, the map after, the block's input."""
    shape, largest = (3, 16, 16), 4 * 8 * 16 * 16
    for downsample in ("stride", "avgpool"):
        settings = ResNetConfig(blocks=(2, 1), channels=(8, 8), pool="global", downsample=downsample)
        peak = weigh(build(settings, shape, 10), shape).activations
        assert 3 * largest <= peak <= 3 * largest + 4 * 3 * 16 * 16 + 64 * 8


def test_weighing_leaves_the_model_as_it_was():
    model = build(ResNetConfig(), CIFAR, 10).train()
    weigh(model, CIFAR)
    assert all(module.training and not module._forward_hooks for module in model.modules())


# --- the budget --------------------------------------------------------------------------------------------


def test_under_means_less_than():
    weights = weigh(build(ResNetConfig(), CIFAR, 10), CIFAR)
    check(Budget(), weights, "")
    check(Budget(params=701_467, macs="1G", bytes_fp32="3MB", bytes_fp16="2MB", bytes_int8="1MiB"), weights, "")
    with pytest.raises(UserError, match=r"params 701,466 is not under the budget of 701,466 \(budget.params\)"):
        check(Budget(params=701_466), weights, "")


def test_every_limit_is_checked():
    weights = weigh(build(ResNetConfig(), CIFAR, 10), CIFAR)
    for key in Budget.__struct_fields__:
        with pytest.raises(UserError, match=rf"{key} .*\(budget.{key}\)"):
            check(config.build({key: "1k"}, Budget, "recipe"), weights, "")


def test_the_error_shows_the_layers():
    settings = ResNetConfig(blocks=(3, 4, 6, 3), channels=(32, 64, 128, 256))
    with pytest.raises(UserError) as error:
        check(Budget(params="5M", macs="10M"), weigh(build(settings, CIFAR, 10), CIFAR), settings.cure)
    lines = str(error.value).splitlines()
    assert lines[0] == "params 5,326,506 is not under the budget of 5,000,000 (budget.params)"
    assert lines[1].startswith("macs ")
    assert lines[1].endswith(": use fewer model.blocks or narrower model.channels, or raise the budget")
    assert any("layer3.5" in line for line in lines)
    assert max(map(len, lines[2:])) <= 80


@pytest.mark.parametrize("value", ["5X", "-1", "0", 0, "lots"])
def test_a_limit_that_is_no_size_is_refused(value):
    with pytest.raises(UserError, match=r"params: .* is not a size"):
        config.build({"params": value}, Budget, "recipe")


def test_rows_are_blocks():
    rows = grouped(weigh(build(ResNetConfig(), CIFAR, 10), CIFAR))
    assert [row.name for row in rows] == ["conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "linear"]
    assert sum(row.params for row in rows) == 701_466
    assert (rows[3].kind, rows[3].shape) == ("3x3/2, 3x3, 1x1/2", (32, 16, 16))
    assert rows[0].params == 3 * 16 * 9 + 2 * 16


def test_squeeze_and_excitation_and_last_norms_join_what_they_follow():
    """A row's shape is its block's, though squeeze and excitation, which gives one pixel, runs last."""
    for se, kinds in (("stem", ("3x3, se", "3x3, 3x3")), ("blocks", ("3x3", "3x3, 3x3, se"))):
        settings = ResNetConfig(blocks=(2,), channels=(8,), preactivation=True, se=se, pool="global")
        weights = weigh(build(settings, CIFAR, 10), CIFAR)
        rows = grouped(weights)
        assert [(row.name, row.kind) for row in rows[:2]] == [("conv1", kinds[0]), ("layer1.0", kinds[1])]
        assert [row.shape for row in rows] == [(8, 32, 32)] * 3 + [(10,)]
        assert [row.name for row in rows[2:]] == ["layer1.1", "linear"]
        assert sum(row.params for row in rows) == weights.params
        assert rows[2].params - rows[1].params == 2 * 8  # the last norm


def test_rows_of_mobilenet():
    rows = grouped(weigh(build(MobileNetV2Config(), CIFAR, 10), CIFAR))
    assert len(rows) == 1 + 17 + 1 + 1
    assert (rows[1].kind, rows[4].kind, rows[4].shape) == ("dw3x3, 1x1", "1x1, dw3x3/2, 1x1", (32, 16, 16))
    assert rows[1].macs == 32 * 32 * (32 * 9 + 32 * 16)


def test_table_names_every_total():
    text = budget._as_text(table(weigh(build(PAPER, CIFAR, 10), CIFAR)))
    for part in ("4,978,810", "1.18 G", "19.9 MB", "9.97 MB", "5.00 MB", "1.59 MB", "14.5% █████"):
        assert part in text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1.00 k"), (9_999, "10.0 k"), (701_466, "701 k"), (999_950, "1.00 M")],
)
def test_short(number, text):
    assert short(number) == text
