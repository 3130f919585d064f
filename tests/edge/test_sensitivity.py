"""The layer that rounding hurts most comes first."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.edge.test_shipped import MEAN, SHAPE, STD, lived_in, pixels
from weightclass.edge.sensitivity import ranking, rounded
from weightclass.edge.shipped import Shipped


@pytest.mark.parametrize("layer", ["network.layer1.0.conv2", "network.layer2.1.conv1"])
def test_a_layer_with_one_huge_weight_comes_first(layer: str) -> None:
    shipped = Shipped(lived_in(), SHAPE, MEAN, STD)
    assert ranking(shipped, pixels(16))[0] != layer
    shipped.get_submodule(layer).weight[:, 0, 0, 0] = 300 * shipped.get_submodule(layer).weight.abs().max()
    shipped.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: (without_channel_0(inputs[0]),))
    assert ranking(shipped, pixels(16))[0] == layer


def without_channel_0(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1)


def test_it_leaves_the_network_as_it_was() -> None:
    shipped = Shipped(lived_in(), SHAPE, MEAN, STD)
    before = shipped(pixels())
    assert sorted(ranking(shipped, pixels())) == sorted(shipped.layers)
    assert torch.equal(shipped(pixels()), before)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8), st.floats(1e-3, 10))
def test_rounding_is_to_the_nearest_multiple(values: list[float], step: float) -> None:
    found = rounded(torch.tensor(values, dtype=torch.float64), torch.tensor(step, dtype=torch.float64))
    assert found.tolist() == pytest.approx([round(value / step) * step for value in values])


def test_what_is_zero_everywhere_stays_zero() -> None:
    assert rounded(torch.zeros(3), torch.zeros(1)).tolist() == [0, 0, 0]
