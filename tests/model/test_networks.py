from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightclass import config, recipe
from weightclass.errors import UserError
from weightclass.model.mobilenet import MobileNetV2, MobileNetV2Config
from weightclass.model.networks import Network, build, group_norms, shrink
from weightclass.model.norm import GroupBatchNorm2d
from weightclass.model.resnet import ResNet, ResNetConfig

SHAPE = (3, 9, 9)
NETWORKS: list[Network] = [
    ResNetConfig(blocks=(1, 1), channels=(4, 6), pool="global"),
    ResNetConfig(blocks=(1, 2), channels=(4, 6), stem_channels=3, pool="global", preactivation=True, se="blocks"),
    MobileNetV2Config(width=0.1),
]
GOLDEN = {
    "conv1.weight": 19.1818,
    "layer1.0.conv1.weight": 26.9927,
    "layer1.0.conv2.weight": 25.2638,
    "layer2.0.conv1.weight": 39.4906,
    "layer2.0.conv2.weight": 73.5368,
    "layer2.0.shortcut.0.weight": 10.6141,
    "linear.weight": 32.6862,
}


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_are_a_function_of_the_seed_alone(network: Network) -> None:
    state = torch.get_rng_state()
    first, again, other = (build(network, SHAPE, 5, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator is neither read nor moved
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].ndim > 1]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    assert all(value.isfinite().all() for value in first.values())


def test_golden_first_weights() -> None:
    """Names and first weights of seed 0 do not change, whatever is added to the family."""
    model = build(ResNetConfig(blocks=(1, 1), channels=(4, 8), pool="global"), (3, 8, 8), 10, seed=0)
    sums = {name: p.double().abs().sum().item() for name, p in model.named_parameters() if p.ndim > 1}
    assert sums == pytest.approx(GOLDEN, abs=1e-4)


@pytest.mark.parametrize("network", [*NETWORKS, ResNetConfig(channels=(4096, 8192, 16384, 32768), pool="global")])
def test_without_a_seed_nothing_is_allocated(network: Network) -> None:
    model = build(network, SHAPE, 5)
    assert isinstance(model, ResNet if isinstance(network, ResNetConfig) else MobileNetV2)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("network", NETWORKS)
def test_every_norm_can_be_grouped(network: Network) -> None:
    model = build(network, SHAPE, 5)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for group in (4, 0):
        group_norms(model, group)
        assert all(isinstance(norm, GroupBatchNorm2d) and norm.group == (group or None) for norm in norms)
    assert len(norms) > 3


# --- narrower ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 512), min_size=1, max_size=4), st.integers(0, 64), st.floats(1 / 64, 2))
def test_shrinking(channels: list[int], stem: int, width: float) -> None:
    settings = ResNetConfig(blocks=(1,) * len(channels), channels=tuple(channels), stem_channels=stem, se="stem")
    narrow = shrink(settings, width)
    assert isinstance(narrow, ResNetConfig)
    assert (narrow.blocks, narrow.se) == (settings.blocks, "stem")
    assert (narrow.stem_channels == 0) == (stem == 0)
    for now, before in zip((narrow.stem, *narrow.channels), (settings.stem, *settings.channels), strict=True):
        assert abs(now - max(width * before, 1)) <= 0.5
    assert shrink(settings, 1) == settings


def test_shrinking_the_papers_network_and_mobilenet() -> None:
    eighth = shrink(ResNetConfig(channels=(128, 100, 164, 200)), 1 / 8)
    assert eighth == ResNetConfig(channels=(16, 12, 20, 25))
    assert shrink(MobileNetV2Config(width=0.5, dropout=0.1), 0.5) == MobileNetV2Config(width=0.25, dropout=0.1)


# --- in recipes --------------------------------------------------------------------------------------------


def test_a_recipe_may_name_another_network() -> None:
    named = recipe.load("paper-97", "model.name=mobilenetv2", "model.width=.5").recipe
    assert named.model == MobileNetV2Config(width=0.5)
    tree = config.parse_toml(config.to_toml(named), "text")
    assert config.build(tree, recipe.Recipe, "text") == named


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model.name=mobilenetv3"], "model.name = 'mobilenetv3': did you mean mobilenetv2"),
        (["model.name=mobilenetv2", "model.pool=global"], "unknown key model.pool of mobilenetv2"),
        (["model.width=0.5"], "unknown key model.width of resnet"),
    ],
)
def test_another_networks_keys_are_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        recipe.load("paper-97", *overrides)
