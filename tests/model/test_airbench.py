from __future__ import annotations

import pytest
import torch

from tests.reference.plain_airbench import CifarNet
from weightclass import config
from weightclass.errors import UserError
from weightclass.model.airbench import Airbench, AirbenchConfig
from weightclass.model.networks import build

CIFAR = (3, 32, 32)


def images(*shape: int) -> torch.Tensor:
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32) * 0.7).view(shape)


def acquainted(network: AirbenchConfig, seed: int = 1) -> Airbench:
    model = build(network, CIFAR, 10, seed=seed)
    assert isinstance(model, Airbench)
    model.acquaint(images(20, *CIFAR).split(7))
    return model


def plain_names(model: Airbench) -> dict[str, torch.Tensor]:
    """Our weights under the twin's names; its head is divided by the number of its inputs in every pass."""
    renamed = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("conv1", "whiten", 1).replace("linear", "head")
        for layer in (1, 2, 3):
            name = name.replace(f"layer{layer}.", f"layers.{layer}.")
        for i in (0, 1):
            name = name.replace(f"convs.{i}", f"conv{i + 1}").replace(f"norms.{i}", f"norm{i + 1}")
        renamed[name] = tensor * tensor.shape[1] if name == "head.weight" else tensor
    return renamed


def test_equals_plain_twin() -> None:
    model, twin = acquainted(AirbenchConfig(channels=(8, 12, 16))), CifarNet((8, 12, 16))
    twin.load_state_dict(plain_names(model))  # strict: nothing is left over on either side
    batch = images(6, *CIFAR).contiguous(memory_format=torch.channels_last)
    for training in (True, False):  # training first, so that evaluation has moved running statistics
        ours, plain = model.train(training)(batch), twin.train(training)(batch)
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    model.train()(batch).square().mean().backward()
    twin.train()(batch).square().mean().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == {
        "conv1.weight",
        *(name for name, p in model.named_parameters() if "norms" in name and name.endswith("weight")),
    }
    torch.testing.assert_close(
        model.get_parameter("layer1.convs.0.weight").grad,
        twin.get_parameter("layers.1.conv1.weight").grad,
        atol=1e-6,
        rtol=1e-4,
    )


def test_starts_as_the_twin_does() -> None:
    """The same parts passed on, the same spread of everything else."""
    torch.manual_seed(0)
    ours, theirs = plain_names(acquainted(AirbenchConfig())), CifarNet().state_dict()
    assert sum(p.numel() for p in CifarNet().parameters()) == 1_972_792
    for name in ("layers.1.conv1.weight", "layers.2.conv2.weight", "layers.3.conv1.weight"):
        rows = ours[name].shape[1]
        assert torch.equal(ours[name][:rows], theirs[name][:rows])
        assert ours[name][rows:].numel() == 0 or ours[name][rows:].std() == pytest.approx(
            theirs[name][rows:].std().item(), rel=0.02
        )
    assert ours["head.weight"].std().item() == pytest.approx(theirs["head.weight"].std().item(), rel=0.05)


def test_the_stem_whitens() -> None:
    """What it makes of the images that it was shown has equal variance along each axis, and no correlation."""
    model, shown = acquainted(AirbenchConfig()), torch.randn(50, *CIFAR, generator=torch.Generator().manual_seed(0))
    shown = torch.nn.functional.avg_pool2d(shown, 3, 1, 1)  # neighbours are alike, as in pictures
    model.acquaint([shown])
    twin = CifarNet()
    twin.init_whiten(shown)
    responses = model.conv1(shown)[:, :12].transpose(0, 1).flatten(1)
    torch.testing.assert_close(responses @ responses.T / responses.shape[1], torch.eye(12), atol=0.06, rtol=0)
    ours, theirs = (each.flatten(1)[:12] for each in (model.conv1.weight, twin.whiten.weight))
    torch.testing.assert_close((ours * theirs).sum(1).abs(), ours.norm(dim=1) * theirs.norm(dim=1))  # up to the sign
    assert torch.equal(model.conv1.weight[12:], -model.conv1.weight[:12])


def test_no_filter_is_empty_whatever_the_images() -> None:
    """Of one colour each, the patches' axes have components that sum to nothing."""
    model = acquainted(AirbenchConfig())
    model.acquaint([torch.arange(24.0).view(8, 3, 1, 1).sin().expand(8, *CIFAR)])
    assert model.conv1.weight.flatten(1).norm(dim=1).min() > 0.1
    assert model.conv1.weight.isfinite().all()


def test_without_a_bias_no_gradient_goes_below_the_first_layer() -> None:
    channels = (8, 12, 16)
    with_it, without = (acquainted(AirbenchConfig(channels=channels, whiten_bias=bias)) for bias in (True, False))
    assert torch.equal(with_it(images(4, *CIFAR)), without(images(4, *CIFAR)))  # it starts at 0
    assert sum(p.numel() for p in with_it.parameters()) - sum(p.numel() for p in without.parameters()) == 24
    assert not any(p.requires_grad for p in without.conv1.parameters())


def test_residual_layers_add_what_their_first_convolution_came_to() -> None:
    network = AirbenchConfig(channels=(8, 8), convs=3, residual=True)
    model, plain = acquainted(network), acquainted(AirbenchConfig(channels=(8, 8), convs=3))
    batch = images(4, *CIFAR)
    layer = model.get_submodule("layer1")
    x = torch.nn.functional.gelu(model.conv1(batch))
    first = torch.nn.functional.gelu(layer.norms[0](layer.pool(layer.convs[0](x))))  # type: ignore[operator, index]
    y = torch.nn.functional.gelu(layer.norms[1](layer.convs[1](first)))  # type: ignore[operator, index]
    y = torch.nn.functional.gelu(layer.norms[2](layer.convs[2](y)) + first)  # type: ignore[operator, index]
    torch.testing.assert_close(layer(x), y)
    assert not torch.allclose(layer(x), plain.get_submodule("layer1")(x))


def test_depthwise_layers_filter_each_channel_then_mix_them() -> None:
    """As one convolution whose kernels are the products; they start by passing the inputs on, filtered a little."""
    model = acquainted(AirbenchConfig(channels=(8, 24, 12), depthwise=(0, 5, 3)))
    dense, separable = (model.get_submodule(f"layer{i}.convs.0") for i in (1, 2))
    assert isinstance(dense, torch.nn.Conv2d)
    each, mix = separable.children()
    x = images(2, 8, 15, 15)
    kernels = each.weight[:, 0] * mix.weight[:, :, :1, :1]  # type: ignore[operator, index]
    torch.testing.assert_close(separable(x), torch.nn.functional.conv2d(x, kernels, padding=2), atol=1e-5, rtol=1e-4)
    passed = separable(x)[:, :8]
    assert torch.nn.functional.cosine_similarity(passed.flatten(), x.flatten(), dim=0) > 0.8


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"channels": []}, "channels is empty"),
        ({"residual": True, "convs": 1}, "set convs to 2"),
        ({"depthwise": [3, 3]}, "depthwise has 2 entries for 3 layers"),
        ({"depthwise": [0, 3, 4]}, "depthwise = 4 is even .* use 5"),
    ],
)
def test_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        config.build({"name": "airbench", **settings}, AirbenchConfig, "[model]")


def test_small_images_are_refused() -> None:
    with pytest.raises(UserError, match="8x8 images are too small for 3 layers"):
        build(AirbenchConfig(), (3, 8, 8), 10)
    build(AirbenchConfig(), (3, 9, 9), 10)
