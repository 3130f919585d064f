"""Padded and unpadded are one function, and stay it in training: the same losses and weights, exact zeros outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.reference.tiny_run import Run, Train, Watcher
from weightclass.model.mobilenet import MobileNetV2Config
from weightclass.model.networks import build, group_norms
from weightclass.model.padding import corner, padded, unpadded, wider
from weightclass.model.resnet import ResNetConfig
from weightclass.training import optim
from weightclass.training.averaging import Average
from weightclass.training.lookahead import Lookahead
from weightclass.training.loop import State

SHAPE, CLASSES = (3, 8, 8), 5
EVERY_ACTIVATION = ("relu", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish")


def network(config: ResNetConfig, seed: int = 0) -> nn.Module:
    """In float64, its norms as a trained network's, no channel like another."""
    model = build(config, SHAPE, CLASSES, seed).double()
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            tensor += torch.rand(tensor.shape, generator=torch.Generator().manual_seed(len(name))) / 2
    return model


def twice(config: ResNetConfig) -> tuple[nn.Module, nn.Module]:
    narrow = network(config)
    return narrow, padded(narrow, config, SHAPE, CLASSES)


def images(count: int = 6) -> Tensor:
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@settings(deadline=None, max_examples=40)
@given(
    channels=st.tuples(st.integers(1, 18), st.integers(1, 18)),
    stem=st.integers(0, 18),
    activation=st.sampled_from(EVERY_ACTIVATION),
    how=st.fixed_dictionaries(
        {
            "norm": st.sampled_from(("batch", "none")),
            "pool": st.sampled_from(("avg(2)", "max(2)", "avg(4)", "global")),
            "downsample": st.sampled_from(("stride", "avgpool", "maxpool")),
            "preactivation": st.sampled_from((False, True, "blocks")),
            "se": st.sampled_from(("none", "stem", "blocks")),
            "se_reduction": st.integers(1, 9),
        }
    ),
)
def test_any_resnet_computes_the_same(
    channels: tuple[int, int], stem: int, activation: Any, how: dict[str, Any]
) -> None:
    config = ResNetConfig(blocks=(1, 1), channels=channels, stem_channels=stem, activation=activation, **how)
    narrow, wide = twice(config)
    for training in (False, True):
        expected = narrow.train(training)(images())
        torch.testing.assert_close(wide.train(training)(images()), expected, rtol=1e-9, atol=1e-9)
    for name, tensor in unpadded(wide, config, SHAPE, CLASSES).state_dict().items():
        torch.testing.assert_close(tensor, narrow.state_dict()[name], rtol=1e-9, atol=1e-9)


def test_channels_become_multiples_of_eight_where_the_network_stays_the_same() -> None:
    config = ResNetConfig(blocks=(1, 1, 1), channels=(128, 100, 1), stem_channels=9)
    assert wider(config) == ResNetConfig(blocks=(1, 1, 1), channels=(128, 104, 8), stem_channels=16)
    even = ResNetConfig(channels=(16, 32, 64, 128), pool="global")
    assert wider(even) == even and padded(model := network(even), even, SHAPE, CLASSES) is model
    projecting = ResNetConfig(blocks=(1,), channels=(10,), stem_channels=12)  # 16 and 16 would have no projection
    assert wider(projecting) == projecting
    assert wider(MobileNetV2Config()) == MobileNetV2Config()


def test_a_linear_layer_over_pixels_reads_them_channel_by_channel() -> None:
    config = ResNetConfig(blocks=(1,), channels=(3,), pool="avg(4)")  # 2x2 pixels are left
    narrow, wide = twice(config)
    weight = wide.get_parameter("linear.weight")
    assert weight.shape == (CLASSES, 8 * 4)
    assert torch.equal(weight[:, : 3 * 4], narrow.get_parameter("linear.weight")) and not weight[:, 3 * 4 :].any()


def outside(narrow: dict[str, Tensor], wide: dict[str, Tensor]) -> Iterator[Tensor]:
    for name, tensor in wide.items():
        yield tensor - corner(corner(tensor, tuple(narrow[name].shape)), tuple(tensor.shape))


@pytest.mark.parametrize(
    ("optimizer", "train", "config"),
    [
        (optim.SGD(lr=0.1, nesterov=True, decay_norms=True), {"ema": 0.9, "clip_norm": 0.05}, {}),
        (optim.SGD(lr=0.1, weight_decay=0.1), {"sam": 0.2, "clip_value": 0.01}, {"preactivation": True}),
        (optim.Adadelta(weight_decay=0.1), {"lookahead": 2}, {"se": "blocks", "se_reduction": 2}),
        (optim.AdamW(decay_norms=True), {"bn_group": 8}, {"activation": "gelu", "dropout": 0.3}),
        (optim.AdamW(), {}, {"norm": "none", "activation": "elu", "pool": "avg(2)"}),
    ],
)
def test_training_keeps_the_zeros_and_all_else(tmp_path: Path, optimizer: Any, train: Any, config: Any) -> None:
    config = ResNetConfig(blocks=(1, 2), channels=(5, 11), **{"pool": "global"} | config)
    ends = []
    for model in twice(config):
        group_norms(model, train.get("bn_group", 0))
        run, watcher = Run(Train(epochs=2, batch_size=16, **train), optimizer), Watcher()
        average = Average(model, run.train.ema) if run.train.ema else None
        lookahead = Lookahead(model, 2, 0.5) if run.train.lookahead else None
        run.state = State(model, optim.build(optimizer, model), average, lookahead, sums=run.state.sums)
        run.fit(tmp_path / str(len(ends)), watcher)
        ends.append((run.tensors(), watcher.losses))
    (narrow, losses), (wide, same) = ends
    torch.testing.assert_close(same, losses, rtol=1e-9, atol=0)
    assert any(narrow[name].shape != wide[name].shape for name in wide)
    assert not any(tensor.any() for tensor in outside(narrow, wide))
    for name, tensor in narrow.items():
        torch.testing.assert_close(corner(wide[name], tuple(tensor.shape)), tensor, rtol=1e-7, atol=1e-9)


def test_an_unpadded_network_owns_its_memory() -> None:
    config = ResNetConfig(blocks=(1,), channels=(3,), pool="global")
    _, wide = twice(config)
    out = unpadded(wide, config, SHAPE, CLASSES)
    out.get_parameter("conv1.weight").data.zero_()
    assert wide.get_parameter("conv1.weight").any()
    assert unpadded(out, config, SHAPE, CLASSES) is out
