"""What is shipped says what was trained: norms folded, pixels normalised inside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from weightclass import recipe
from weightclass.augment.ops import normalise
from weightclass.edge.shipped import Shipped, folded
from weightclass.model import networks
from weightclass.model.blocks import StridedPointwise
from weightclass.model.norm import GroupBatchNorm2d

SHAPE, MEAN, STD = (3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
KINDS = [
    (),
    ("model.preactivation=true", "model.se=blocks"),
    ("model.preactivation=blocks", "model.se=stem"),
    ("model.norm=none",),
    ("model.downsample=maxpool", "model.pool=global", "model.activation=gelu"),
    ("model.downsample=avgpool", "model.dropout=0.3"),
    ("model.name=mobilenetv2", "model.width=0.1"),
    ("model.name=airbench", "model.channels=8,12"),
    ("model.name=airbench", "model.channels=8,12", "model.whiten_bias=false", "model.depthwise=0,3"),
    ("model.name=mbconv", "model.blocks=1,2", "model.channels=8,12"),
]


def lived_in(*settings: str, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    """A network whose norms are those of no fresh one."""
    small = () if "model.name" in "".join(settings) else ("model.blocks=1,2", "model.channels=8,16")
    network = networks.build(recipe.load("quickstart", *small, *settings).recipe.model, shape, 10, seed=3)
    draw = torch.Generator().manual_seed(0)
    for norm in (module for module in network.modules() if isinstance(module, GroupBatchNorm2d)):
        for tensor, lo, hi in ((norm.weight, 0.5, 2), (norm.bias, -1, 1), (norm.running_mean, -1, 1)):
            tensor.data.uniform_(lo, hi, generator=draw)
        norm.running_var.data.uniform_(0.2, 3, generator=draw)
    return network.eval()


def pixels(n: int = 4, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    return torch.randint(256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("settings", KINDS, ids=" ".join)
@torch.no_grad()
def test_it_says_what_the_network_says(settings: tuple[str, ...]) -> None:
    network = lived_in(*settings)
    before = copy.deepcopy(network.state_dict())
    shipped = Shipped(network, SHAPE, MEAN, STD)
    expected = network(normalise(pixels(), torch.tensor(MEAN), torch.tensor(STD)))
    torch.testing.assert_close(shipped(pixels()), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("settings", KINDS, ids=" ".join)
def test_no_norm_is_left_that_folds(settings: tuple[str, ...]) -> None:
    network = lived_in(*settings)
    kept = [module for module in folded(network, SHAPE).modules() if isinstance(module, GroupBatchNorm2d)]
    assert not any(norm.folds for norm in kept)
    assert len(kept) == sum(isinstance(m, GroupBatchNorm2d) and not m.folds for m in network.modules())


def test_layers_are_named_and_the_head_is_none_of_them() -> None:
    shipped = Shipped(lived_in(), SHAPE, MEAN, STD)
    assert shipped.head == "network.linear"
    assert shipped.layers[:2] == ["network.conv1", "network.layer1.0.conv1"]
    assert all(isinstance(shipped.get_submodule(name), nn.Conv2d) for name in shipped.layers)


def test_strided_pointwise_convolutions_are_plain_again() -> None:
    network = lived_in()
    assert any(isinstance(module, StridedPointwise) for module in network.modules())
    assert {type(module) for module in folded(network, SHAPE).modules() if isinstance(module, nn.Conv2d)} == {nn.Conv2d}
