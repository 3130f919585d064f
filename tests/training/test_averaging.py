"""The twin equals the closed formula, in weights and in BN statistics, from the first step on."""

from __future__ import annotations

import pytest
import torch

from tests.reference import plain_loop, tiny_run
from weightclass.training.averaging import Average


def moved(model: torch.nn.Module, step: int) -> dict[str, torch.Tensor]:
    """Give every tensor of `model` new values, as training would; a copy of them."""
    for place, tensor in enumerate(model.state_dict().values()):
        if tensor.is_floating_point():
            values = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * (place + 1) + step * 0.7)
            tensor.copy_(values.view_as(tensor))
        else:
            tensor.fill_(step)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_equals_the_closed_formula(decay: float) -> None:
    model = tiny_run.model()
    average = Average(model, decay)
    history = []
    for step in range(1, 21):
        history.append(moved(model, step))
        average.update(model, step)
        for name, tensor in average.twin.state_dict().items():
            if tensor.is_floating_point():
                expected = plain_loop.averaged([state[name] for state in history], decay)
                torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-12)
            else:
                assert tensor.item() == step


def test_the_first_step_is_the_model_itself() -> None:
    model = tiny_run.model()
    average = Average(model, 0.999)
    state = moved(model, 1)
    average.update(model, 1)
    assert not tiny_run.differing(dict(average.twin.state_dict()), state)


def test_the_twin_is_apart_from_the_model() -> None:
    model = tiny_run.model().train()
    average = Average(model, 0.9)
    before = {name: tensor.clone() for name, tensor in average.twin.state_dict().items()}
    moved(model, 3)
    assert not tiny_run.differing(dict(average.twin.state_dict()), before)
    assert model.training
    assert not average.twin.training
    assert not any(parameter.requires_grad for parameter in average.twin.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
