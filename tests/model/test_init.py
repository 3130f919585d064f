from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from weightclass.model.init import initialise, normal


def test_normal_has_the_moments_of_a_normal():
    draws = normal(1, 200_000)
    assert draws.dtype == torch.float32
    assert draws.isfinite().all()
    assert abs(draws.mean()) < 0.01
    assert abs(draws.std() - 1) < 0.01
    assert abs(draws.pow(3).mean()) < 0.03
    assert abs(draws.pow(4).mean() - 3) < 0.06
    assert abs((draws.abs() < 1.959964).float().mean() - 0.95) < 0.002


def test_normal_golden_values():
    golden = torch.tensor([-0.7541453242301941, 0.9872153997421265, 0.28018486499786377])
    torch.testing.assert_close(normal(1, 3), golden, rtol=1e-6, atol=0)


def test_kaiming_fan_out():
    conv, norm, linear = nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.Linear(512, 32)
    model = nn.Sequential(conv, norm, linear)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(9)
    initialise(model, 0)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.03)
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / 32), rel=0.03)
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))
    assert norm.state_dict()["running_mean"].eq(0).all()
    assert norm.state_dict()["running_var"].eq(1).all()
    assert norm.weight.eq(1).all()
    assert norm.num_batches_tracked == 0


def test_layers_draw_by_name_not_by_order():
    def linear(*names: str) -> nn.ModuleDict:
        model = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
        initialise(model, 5)
        return model

    one, two = linear("a", "b"), linear("b")
    assert torch.equal(one["b"].weight, two["b"].weight)  # type: ignore[arg-type]
    assert not torch.equal(one["a"].weight, one["b"].weight)  # type: ignore[arg-type]


def test_a_layer_without_a_rule_is_refused():
    with pytest.raises(TypeError, match="no rule to initialise 0, a LayerNorm"):
        initialise(nn.Sequential(nn.LayerNorm(3)), 0)
