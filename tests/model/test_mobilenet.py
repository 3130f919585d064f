from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.plain_mobilenet import PlainMobileNetV2
from weightclass import config
from weightclass.errors import UserError
from weightclass.model.blocks import InvertedResidual
from weightclass.model.mobilenet import MobileNetV2Config, widened
from weightclass.model.networks import build, group_norms

CIFAR = (3, 32, 32)


def images(*shape: int) -> torch.Tensor:
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32) * 0.7).view(shape)


def count(width: float, classes: int) -> int:
    return sum(p.numel() for p in build(MobileNetV2Config(width=width), CIFAR, classes).parameters())


def test_parameters() -> None:
    """Of the paper's Table 2 with ten classes; of a thousand classes as torchvision counts them."""
    assert count(1, 10) == 2_236_682
    assert [count(width, 1000) for width in (0.5, 1, 1.4)] == [1_968_680, 3_504_872, 6_108_776]


def test_equals_plain_twin() -> None:
    model, twin = build(MobileNetV2Config(), CIFAR, 10, seed=1), PlainMobileNetV2()
    twin.load_state_dict(model.state_dict())  # strict: the names agree as well
    batch = images(6, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    for training in (True, False):  # training first, so that evaluation has moved running statistics
        ours, plain = model.train(training)(batch), twin.train(training)(batch)
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    model(batch).square().mean().backward()
    twin(batch).square().mean().backward()
    theirs = dict(twin.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name].grad, atol=1e-4, rtol=1e-3)


def test_first_logits_are_small() -> None:
    """Kaiming's, at 1280 inputs, would start at a loss of 8 and not train at the usual learning rates."""
    model = build(MobileNetV2Config(), CIFAR, 10, seed=0)
    assert model.get_parameter("linear.weight").std().item() == pytest.approx(0.01, rel=0.03)
    assert model(images(8, *CIFAR)).std() < 0.5


@given(st.integers(1, 2000), st.floats(0.01, 16))
def test_widths_are_near_multiples_of_8(channels: int, width: float) -> None:
    found = widened(channels, width)
    assert found % 8 == 0
    assert found >= 8
    assert 0.9 * channels * width <= found <= max(8, channels * width + 8)


@given(
    height=st.integers(5, 40),
    width=st.integers(5, 40),
    channels=st.integers(1, 4),
    factor=st.floats(0.05, 2),
)
@settings(max_examples=6, deadline=None)
def test_any_image_size(*, height: int, width: int, channels: int, factor: float) -> None:
    model = build(MobileNetV2Config(width=factor), (channels, height, width), 7)
    assert model(torch.empty(2, channels, height, width, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("shape", [(3, 4, 32), (1, 32, 4)])
def test_images_too_small_to_halve_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=r"too small, .*5x5 at least, or model\.name=resnet"):
        build(MobileNetV2Config(), shape, 10)


def trained(*, group: int, sizes: list[int], recompute: bool = False) -> dict[str, torch.Tensor]:
    """Logits, gradients and buffers of a batch in pieces."""
    model = build(MobileNetV2Config(width=0.1), (3, 9, 9), 5, seed=0).double()
    group_norms(model, group)
    for module in model.modules():
        if isinstance(module, InvertedResidual):
            module.recompute = recompute
    logits = []
    for part in images(12, 3, 9, 9).double().split(sizes):
        logits.append(model(part))
        logits[-1].square().sum().backward()
    grads = {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    return {"logits": torch.cat(logits)} | grads | dict(model.named_buffers())


def test_groups_are_micro_batches() -> None:
    whole = trained(group=4, sizes=[12])
    for group, sizes in ((4, [8, 4]), (0, [4, 4, 4])):
        torch.testing.assert_close(trained(group=group, sizes=sizes), whole)


def test_recomputing_blocks_changes_no_bit() -> None:
    held, again = (trained(group=4, sizes=[8, 4], recompute=recompute) for recompute in (False, True))
    assert [name for name in held if not torch.equal(held[name], again[name])] == []


def test_dropout_comes_before_the_linear_layer() -> None:
    model = build(MobileNetV2Config(width=0.1, dropout=0.5), (3, 9, 9), 5, seed=0)
    with pytest.raises(RuntimeError, match="place"):
        model(images(4, 3, 9, 9))
    model.dropout.place(1, torch.arange(4))  # type: ignore[operator]
    assert model(images(4, 3, 9, 9)).shape == (4, 5)


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"width": 0}, r"width = 0.*> 0"),
        ({"width": 17.0}, r"width = 17.0.*<= 16"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"blocks": [2, 2]}, "unknown key blocks of mobilenetv2"),
    ],
)
def test_bad_settings_are_refused(tree: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        config.build({"name": "mobilenetv2", **tree}, MobileNetV2Config, "recipe")
