"""Uphill and back: the weights move as the paper says, and everything returns bit for bit, whatever happens."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn

from tests.reference import tiny_run
from weightclass.training.sam import uphill


def differentiated() -> nn.Module:
    model = tiny_run.model().train()
    images, labels = tiny_run.pictures(16)
    nn.functional.cross_entropy(model(images.double() / 128 - 1), labels).backward()
    return model


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_rho_along_the_gradient(rho: float) -> None:
    model = differentiated()
    before, gradients = tensors(model), [p.grad.clone() for p in model.parameters() if p.grad is not None]
    length = torch.cat([g.flatten() for g in gradients]).norm()
    with uphill(model, rho):
        for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(weight.detach(), before[name] + rho * gradient / length, rtol=1e-10, atol=1e-12)
    assert not tiny_run.differing(tensors(model), before)


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_everything_returns(error: Any) -> None:
    model = differentiated()
    before = tensors(model)
    try:
        with uphill(model, 0.1):
            model(torch.ones(4, 3, 8, 8).double()).sum().backward()
            assert len(tiny_run.differing(tensors(model), before)) == len(before)  # counters of batches, too
            if error:
                raise error
    except ZeroDivisionError:
        pass
    assert not tiny_run.differing(tensors(model), before)


def test_memory_that_runs_out_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = differentiated()
    before, add = tensors(model), torch._foreach_add_

    def halfway(weights: list[torch.Tensor], steps: list[torch.Tensor]) -> None:
        add(weights[:3], steps[:3])
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "_foreach_add_", halfway)
    with pytest.raises(torch.OutOfMemoryError), uphill(model, 0.1):
        raise AssertionError("not reached")
    assert not tiny_run.differing(tensors(model), before)


def test_no_gradient_is_no_way() -> None:
    model = differentiated()
    first, *others = model.parameters()
    first.grad = None
    for parameter in others:
        assert parameter.grad is not None
        parameter.grad.zero_()
    before = tensors(model)
    with uphill(model, 0.1):
        assert not tiny_run.differing(tensors(model), before)


def test_the_first_gradient_takes_no_memory_inside() -> None:
    model = differentiated()
    held = [weakref.ref(parameter.grad) for parameter in model.parameters()]
    with uphill(model, 0.1):
        model.zero_grad(set_to_none=True)
        assert not any(gradient() is not None for gradient in held)


def test_the_device_is_not_waited_for() -> None:
    weight = nn.Linear(3, 2, device="meta")  # where reading a number is an error
    for parameter in weight.parameters():
        parameter.grad = torch.empty_like(parameter)
    with uphill(weight, 0.1):
        weight(torch.ones(4, 3, device="meta"))
