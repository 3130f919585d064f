from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.plain_resnet import PlainSqueezeExcite
from weightclass.model.blocks import Recomputed, SqueezeExcite, StridedPointwise
from weightclass.model.networks import build
from weightclass.model.resnet import ResNetConfig


@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 6))
def test_squeeze_and_excitation_equals_its_plain_twin(channels: int, reduction: int, side: int) -> None:
    ours, plain = SqueezeExcite(channels, reduction), PlainSqueezeExcite(channels, reduction)
    for place, parameter in enumerate(ours.parameters()):
        parameter.data = torch.sin(torch.arange(parameter.numel()) + place).view_as(parameter)
    plain.load_state_dict(ours.state_dict())
    x = torch.cos(torch.arange(2.0 * channels * side**2)).view(2, channels, side, side)
    torch.testing.assert_close(ours(x), plain(x))


def test_an_image_is_scaled_by_itself_alone() -> None:
    layer, x = SqueezeExcite(4, 2), torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


def test_a_block_that_computes_nothing_is_refused() -> None:
    with pytest.raises(NotImplementedError):
        Recomputed()(torch.ones(1))


@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 9))
def test_a_strided_pointwise_convolution_is_the_plain_one(inputs: int, outputs: int, side: int) -> None:
    draw = torch.Generator().manual_seed(inputs + 100 * side)
    images, weight = (
        torch.randn(2, inputs, side, side, generator=draw),
        torch.randn(outputs, inputs, 1, 1, generator=draw),
    )
    ours = StridedPointwise(inputs, outputs, 1, 2, bias=False)
    ours.weight.data = weight.clone()
    plain = images.double()[:, :, ::2, ::2].permute(0, 2, 3, 1) @ weight.double().flatten(1).T
    torch.testing.assert_close(ours(images), plain.permute(0, 3, 1, 2).float(), rtol=1e-4, atol=1e-5)


def test_narrow_shortcuts_of_large_images_train_on_a_cpu() -> None:
    """With nn.Conv2d this ends in a segmentation fault (oneDNN's issue 6035)."""
    model = build(ResNetConfig(blocks=(1, 1), channels=(8, 16), pool="global"), (3, 64, 64), 4, seed=0)
    assert isinstance(model.get_submodule("layer2.0.shortcut.0"), StridedPointwise)
    images = torch.ones(16, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    model(images).sum().backward()
    assert model.get_parameter("layer2.0.shortcut.0.weight").grad.isfinite().all()
