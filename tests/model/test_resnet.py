from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.reference.plain_resnet import PlainResNet, PlainWideResNet
from weightclass import config
from weightclass.errors import UserError
from weightclass.model.networks import build, group_norms
from weightclass.model.resnet import ACTIVATIONS, Block, ResNetConfig

CIFAR = (3, 32, 32)
# (blocks, channels, pool, parameters): the paper's networks and the two course projects that it cites
PUBLISHED = [
    ((3, 3, 3, 3), (128, 100, 164, 200), 4, 4_978_810),
    ((3, 3, 3, 3), (128, 100, 160, 200), 4, 4_908_434),
    ((3, 3, 2, 3), (138, 100, 204, 190), 4, 4_969_776),
    ((3, 3, 2, 3), (136, 100, 188, 204), 4, 4_997_074),
    ((3, 3, 2, 3), (94, 192, 120, 200), 4, 4_988_256),
    ((3, 4, 6, 3), (32, 64, 128, 256), 4, 5_326_506),
    ((3, 4, 3), (64, 128, 256), 8, 4_623_178),
    ((3, 4, 6, 3), (64, 128, 128, 256), 4, 6_412_362),
    ((2, 2, 2, 2), (16, 32, 64, 128), 4, 701_466),
    ((2, 2, 2, 2), (64, 128, 256, 512), 4, 11_173_962),
    ((4, 4, 3), (64, 128, 256), 8, 4_697_162),
    ((3, 3, 2, 3), (64, 128, 128, 256), 4, 4_935_242),
]
SMALL: dict[str, Any] = {"blocks": (1, 2), "channels": (4, 6), "pool": "global"}


def images(*shape: int) -> torch.Tensor:
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32) * 0.7).view(shape)


@pytest.mark.parametrize(("blocks", "channels", "pool", "parameters"), PUBLISHED)
def test_published_parameter_counts(blocks, channels, pool, parameters):
    model = build(ResNetConfig(blocks=blocks, channels=channels, pool=f"avg({pool})"), CIFAR, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


# (depth, widening, parameters) of Wide ResNets, as others count them for ten classes
@pytest.mark.parametrize(
    ("depth", "widening", "parameters"),
    [(16, 4, 2_748_890), (40, 2, 2_243_546), (22, 4, 4_298_970), (28, 10, 36_479_194), (40, 1, 563_930)],
)
def test_wide_resnets(depth, widening, parameters):
    n, widths = (depth - 4) // 6, (16 * widening, 32 * widening, 64 * widening)
    settings = ResNetConfig(blocks=(n, n, n), channels=widths, stem_channels=16, preactivation=True, pool="avg(8)")
    assert sum(p.numel() for p in build(settings, CIFAR, 10).parameters()) == parameters


def test_squeeze_and_excitation_after_the_stem_weighs_580_parameters():
    settings = ResNetConfig(blocks=(4, 4, 3), channels=(64, 128, 256), pool="avg(8)", se="stem")
    assert sum(p.numel() for p in build(settings, CIFAR, 10).parameters()) == 4_697_742


def test_default_is_the_papers_small_network():
    assert sum(p.numel() for p in build(ResNetConfig(), CIFAR, 10).parameters()) == 701_466


@pytest.mark.parametrize(
    ("blocks", "channels", "kernels", "skip_kernels", "pool", "size"),
    [
        ([1, 1, 1, 1], [8, 10, 12, 14], [3, 3, 3, 3], [1, 1, 1, 1], 4, 32),
        ([2, 1, 2], [8, 8, 8], [3, 5, 1], [1, 3, 5], 2, 16),  # equal widths still project where the map halves
        ([2, 3], [5, 7], [3, 3], [3, 3], 3, 13),
        ([1], [6], [7], [1], 4, 8),  # pool leaves 2x2: a wider linear layer
    ],
)
@pytest.mark.parametrize(
    ("se", "stem_channels", "preactivation"),
    [("none", 0, False), ("stem", 4, False), ("blocks", 0, False), ("stem", 4, "blocks"), ("blocks", 0, "blocks")],
)
def test_equals_plain_twin(*, blocks, channels, kernels, skip_kernels, pool, size, se, stem_channels, preactivation):
    settings = ResNetConfig(
        blocks=tuple(blocks),
        channels=tuple(channels),
        kernels=tuple(kernels),
        skip_kernels=tuple(skip_kernels),
        pool=f"avg({pool})",
        se=se,
        se_reduction=3,
        stem_channels=stem_channels,
        preactivation=preactivation,
    )
    model = build(settings, (3, size, size), 10, seed=1)
    twin = PlainResNet(
        blocks=blocks,
        channels=channels,
        kernels=kernels,
        skip_kernels=skip_kernels,
        pool=pool,
        features=model.linear.in_features,
        stem_channels=stem_channels,
        stem_se=3 * (se == "stem"),
        block_se=3 * (se == "blocks"),
        preactivated=preactivation == "blocks",
    )
    same_function(model, twin, images(4, 3, size, size))


def same_function(model, twin, batch):
    """Logits in training and evaluation, running statistics, gradients; and the names of all parameters."""
    twin.load_state_dict(model.state_dict())  # strict
    batch = batch.contiguous(memory_format=torch.channels_last)
    for training in (True, False):  # training first, so that evaluation has moved running statistics
        ours, plain = model.train(training)(batch), twin.train(training)(batch)
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    model(batch).square().sum().backward()
    twin(batch).square().sum().backward()
    theirs = dict(twin.named_parameters())
    for name, p in model.named_parameters():
        close = {"atol": 2e-4, "rtol": 1e-3}
        torch.testing.assert_close(p.grad, theirs[name].grad, **close, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("blocks", "channels", "stem_channels", "se_reduction", "size"),
    [
        ([1, 1, 1], [8, 16, 24], 4, 0, 16),  # the first layer projects at stride 1
        ([2, 2], [8, 8], 8, 0, 9),  # the first layer's shortcuts are identities
        ([2, 1, 2], [6, 9, 12], 6, 3, 13),
    ],
)
def test_preactivation_equals_plain_wide_resnet(*, blocks, channels, stem_channels, se_reduction, size):
    settings = ResNetConfig(
        blocks=tuple(blocks),
        channels=tuple(channels),
        stem_channels=stem_channels,
        preactivation=True,
        pool="global",
        se="blocks" if se_reduction else "none",
        se_reduction=se_reduction or 16,
    )
    model = build(settings, (3, size, size), 10, seed=1)
    same_function(model, PlainWideResNet(blocks, channels, stem_channels, se_reduction), images(4, 3, size, size))


@pytest.mark.parametrize("preactivation", [True, "blocks"])
def test_preactivation_without_norms_leaves_its_input_alone(preactivation):
    """Activations work in place, and without a norm between they would reach into what the shortcut adds."""
    settings = ResNetConfig(**SMALL, preactivation=preactivation, norm="none")
    model = build(settings, (3, 8, 8), 5, seed=0)
    block, x = model.get_submodule("layer1.0"), images(2, 4, 8, 8)
    before = x.clone()
    relu, (conv1, conv2) = torch.relu, (block.get_submodule(name) for name in ("conv1", "conv2"))
    torch.testing.assert_close(block(x), before + conv2(relu(conv1(relu(before)))))
    assert torch.equal(x, before)


def test_parameter_names_are_the_well_known_ones():
    names = set(build(ResNetConfig(), CIFAR, 10).state_dict())
    assert {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.1.bn2.running_var"} < names
    assert {"layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.bias", "linear.weight", "linear.bias"} < names
    assert not any(name.startswith(("layer1.0.shortcut", "layer2.1.shortcut")) for name in names)


@given(
    height=st.integers(4, 21),
    width=st.integers(4, 21),
    channels=st.integers(1, 5),
    downsample=st.sampled_from(["stride", "avgpool", "maxpool"]),
    pool=st.sampled_from(["global", "avg(1)", "max(1)"]),
    kernel=st.sampled_from([1, 3, 5]),
    stem_channels=st.integers(0, 4),
    preactivation=st.sampled_from([False, True, "blocks"]),
    se=st.sampled_from(["none", "stem", "blocks"]),
)
@settings(max_examples=40, deadline=None)
def test_any_image_size(*, height, width, channels, downsample, pool, kernel, stem_channels, preactivation, se):
    shape = (channels, height, width)
    settings = ResNetConfig(
        blocks=(1, 1, 1),
        channels=(2, 3, 2),
        downsample=downsample,
        pool=pool,
        kernels=kernel,
        skip_kernels=kernel,
        stem_channels=stem_channels,
        preactivation=preactivation,
        se=se,
    )
    model = build(settings, shape, 7)
    assert model(torch.empty(2, *shape, device="meta")).shape == (2, 7)
    halved = -(-height // 4) * -(-width // 4)  # every way of halving rounds up
    assert model.linear.in_features == 2 * (1 if pool == "global" else halved)


def test_downsample_pools_both_paths():
    pooled = build(ResNetConfig(**SMALL, downsample="maxpool"), (3, 8, 8), 5, seed=3).eval()
    plain = build(ResNetConfig(**SMALL), (3, 8, 8), 5, seed=3).eval()
    block, twin = pooled.get_submodule("layer2.0"), plain.get_submodule("layer2.0")
    for module in twin.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    x = images(2, 4, 8, 8)
    torch.testing.assert_close(block(x.clone()), twin(nn.functional.max_pool2d(x, 2)))


def test_max_pool_and_global_pool():
    features = images(2, 6, 4, 4)
    kinds = {"max(2)": nn.MaxPool2d(2), "avg(2)": nn.AvgPool2d(2), "global": nn.AdaptiveAvgPool2d(1)}
    for pool, plain in kinds.items():
        model = build(ResNetConfig(**{**SMALL, "pool": pool}), (3, 8, 8), 5, seed=0)
        torch.testing.assert_close(model._pool(features).flatten(1), plain(features).flatten(1))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("preactivation", [False, True, "blocks"])
def test_every_activation_trains(activation, norm, preactivation):
    settings = ResNetConfig(**SMALL, activation=activation, norm=norm, preactivation=preactivation)
    model = build(settings, (1, 6, 6), 3, seed=0)
    model(images(4, 1, 6, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(name.endswith("conv1.bias") for name, _ in model.named_parameters()) == (norm == "none")


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("more", [{}, {"preactivation": True}, {"preactivation": "blocks"}, {"se": "blocks"}])
def test_zero_init_residual_starts_as_the_shortcut(norm, more):
    model = build(ResNetConfig(**SMALL, zero_init_residual=True, norm=norm, **more), (3, 8, 8), 5, seed=0)
    x = images(2, 4, 8, 8).abs()
    torch.testing.assert_close(model.get_submodule("layer1.0")(x.clone()), x)


def trained(*, recompute, group=0, bfloat16=False, wrap=lambda model: model, **settings):
    """Outputs, gradients and buffers after two passes; and how often a block's first convolution was computed."""
    model = build(ResNetConfig(blocks=(2, 1), channels=(6, 8), pool="global", **settings), (3, 9, 9), 5, seed=0)
    group_norms(model, group)
    calls: list[int] = []
    for block in model.modules():
        if isinstance(block, Block):
            block.recompute = recompute
            block.conv1.register_forward_hook(lambda *_: calls.append(1))
    found = {}
    for turn in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            found[f"logits {turn}"] = model(images(9, 3, 9, 9).contiguous(memory_format=torch.channels_last))
        found[f"logits {turn}"].float().square().sum().backward()
    model.eval()(images(2, 3, 9, 9)).sum().backward()
    found |= {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    return found | dict(model.named_buffers()), len(calls)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(
    ("group", "tree"),
    [
        (0, {}),
        (4, {"downsample": "maxpool"}),  # a group of five
        (0, {"norm": "none"}),
        (0, {"activation": "silu"}),
        (4, {"preactivation": True, "se": "blocks", "stem_channels": 5}),
        (0, {"preactivation": True, "norm": "none", "downsample": "avgpool"}),
        (4, {"preactivation": "blocks"}),
    ],
)
def test_recomputing_blocks_changes_no_bit(group, tree, bfloat16):
    held, once = trained(recompute=False, group=group, bfloat16=bfloat16, **tree)
    again, twice = trained(recompute=True, group=group, bfloat16=bfloat16, **tree)
    assert held.keys() == again.keys()
    assert [name for name in held if not torch.equal(held[name], again[name])] == []
    assert (once, twice) == (3 * 3, 3 * 5)  # three blocks; evaluation, the third pass, computes each once


@pytest.mark.slow
@pytest.mark.parametrize("group", [0, 2])
def test_recomputing_in_a_compiled_network(group: int):
    """Gradients and running statistics are those of the plain network, whether decided before or after compiling."""
    model = build(ResNetConfig(**SMALL), (3, 8, 8), 5, seed=0)
    group_norms(model, group)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compiled = torch.compile(model, backend="aot_eager", dynamic=False)
    seen: list[list[torch.Tensor]] = []
    for recompute, forward in ((False, model), (False, compiled), (True, compiled)):
        model.load_state_dict(fresh)
        model.zero_grad()
        for block in model.modules():
            if isinstance(block, Block):
                block.recompute = recompute
        forward(images(4, 3, 8, 8)).square().mean().backward()
        seen.append([parameter.grad.clone() for parameter in model.parameters()])
        seen[-1] += [buffer.clone() for buffer in model.buffers()]
    for other in seen[1:]:
        assert all(map(torch.equal, seen[0], other))


@pytest.mark.parametrize("se", ["stem", "blocks"])
def test_groups_are_micro_batches(se):
    """Logits, gradients and running statistics of a batch of groups are those of its groups one after another."""
    config, shape = ResNetConfig(**SMALL, preactivation=True, stem_channels=3, se=se), (3, 8, 8)
    batch, found = images(12, *shape), []
    for group, sizes in ((4, [12]), (4, [8, 4]), (0, [4, 4, 4])):
        model = build(config, shape, 5, seed=0)
        group_norms(model, group)
        logits = []
        for part in batch.split(sizes):
            logits.append(model(part))
            logits[-1].square().sum().backward()
        found.append([torch.cat(logits), *(p.grad for p in model.parameters()), *model.buffers()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_dropout_comes_before_the_linear_layer():
    model = build(ResNetConfig(**SMALL, dropout=0.5), (3, 8, 8), 5, seed=0)
    with pytest.raises(RuntimeError, match="place"):
        model(images(4, 3, 8, 8))
    model.dropout.place(1, torch.arange(4))  # type: ignore[operator]
    assert model(images(4, 3, 8, 8)).shape == (4, 5)


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"blocks": [1, 1]}, "blocks has 2 and channels 4 entries"),
        ({"blocks": [], "channels": []}, "blocks has 0"),
        ({"kernels": [3, 3]}, "kernels has 2 entries for 4 layers"),
        ({"skip_kernels": 2}, "skip_kernels = 2 is even .* use 3"),
        ({"kernels": [3, 3, 4, 3]}, "kernels = 4 is even .* use 5"),
        ({"stem_kernel": 2}, "stem_kernel = 2 is even"),
        ({"pool": "avg(0)"}, "pool = 'avg\\(0\\)': write avg"),
        ({"pool": "mean"}, "write avg\\(4\\)"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"channels": [16, 0, 64, 128]}, "channels.*>= 1"),
        ({"chanels": [1]}, "did you mean channels"),
        ({"se": "stm"}, "se = 'stm': did you mean stem"),
        ({"preactivation": "True"}, "preactivation = 'True': did you mean true"),
        ({"preactivation": "half"}, "choose from true, false, blocks"),
        ({"se_reduction": 0}, "se_reduction = 0"),
        ({"stem_channels": -1}, "stem_channels = -1"),
    ],
)
def test_bad_settings_are_refused(tree, reason):
    with pytest.raises(UserError, match=reason):
        config.build({"name": "resnet", **tree}, ResNetConfig, "recipe")


def test_settings_survive_toml():
    settings = ResNetConfig(kernels=(3, 3, 5, 5))
    tree = config.parse_toml(config.to_toml(settings), "text")
    assert config.build(tree, ResNetConfig, "text") == settings


def test_a_pool_larger_than_the_last_map_is_refused():
    with pytest.raises(UserError, match=r"avg\(4\) is larger than the last map, 1x1 .* use global, avg\(1\)"):
        build(ResNetConfig(), (1, 8, 8), 10)


def test_images_too_small_to_halve_are_refused():
    with pytest.raises(UserError, match=r"4x9 images are too small for 4 layers: layer 4 .* 1x3; use at most 3"):
        build(ResNetConfig(pool="global"), (1, 4, 9), 10)
