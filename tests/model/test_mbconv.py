from __future__ import annotations

import pytest
import torch

from tests.reference.plain_mbconv import PlainMBConv
from weightclass import config
from weightclass.errors import UserError
from weightclass.model import budget
from weightclass.model.mbconv import MBConvConfig
from weightclass.model.networks import build

SMALL = MBConvConfig(blocks=(2, 2), channels=(8, 12), kernels=(3, 5))


def images(*shape: int) -> torch.Tensor:
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float32) * 0.7).view(shape)


def test_equals_plain_twin() -> None:
    model, twin = build(SMALL, (3, 9, 9), 10, seed=1), PlainMBConv()
    twin.load_state_dict(model.state_dict())  # strict: the names agree as well
    batch = images(6, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    for training in (True, False):  # training first, so that evaluation has moved running statistics
        ours, plain = model.train(training)(batch), twin.train(training)(batch)
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    model(batch).square().mean().backward()
    twin(batch).square().mean().backward()
    theirs = dict(twin.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name].grad, atol=1e-4, rtol=1e-3)


def test_weighed() -> None:
    """The docstring's number, and a block's by hand: 24 x 96 + 96 x 9 + 96 x 24, SE of 6, norms of 96, 96 and 24."""
    weights = budget.weigh(build(MBConvConfig(), (3, 32, 32), 10), (3, 32, 32))
    assert weights.params == 71_580
    block = sum(row.params for row in weights.rows if row.name.startswith("layer2.1."))
    assert block == 24 * 96 + 96 * 9 + 96 * 24 + (96 * 6 + 6 + 6 * 96 + 96) + 2 * (96 + 96 + 24)


def test_options() -> None:
    bare = build(MBConvConfig(blocks=(1, 1), channels=(8, 12), se_reduction=0, expansion=1), (3, 8, 8), 10)
    assert not any("fc1" in name or "expand" in name for name, _ in bare.named_parameters())
    settled = build(MBConvConfig(blocks=(2,), channels=(8,), zero_init_residual=True), (3, 8, 8), 10, seed=0)
    batch = images(2, 8, 8, 8)
    for block in settled.get_submodule("layer1").children():
        assert torch.equal(block(batch), batch)
    build(MBConvConfig(blocks=(1, 1, 1), channels=(8, 12, 16)), (1, 5, 7), 3, seed=0)(images(2, 1, 5, 7))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"blocks": [1, 1]}, "blocks has 2 and channels 3 entries"),
        ({"kernels": [3, 5]}, "kernels has 2 entries for 3 layers"),
        ({"expansion": [3, 5]}, "expansion has 2 entries for 3 layers"),
        ({"kernels": 4}, "kernels = 4 is even"),
    ],
)
def test_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        config.build({"name": "mbconv", **settings}, MBConvConfig, "[model]")


def test_small_images_are_refused() -> None:
    with pytest.raises(UserError, match="too small for 3 layers"):
        build(MBConvConfig(), (3, 2, 2), 10)
