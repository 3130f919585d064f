from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference import tiny_run
from tests.reference.tiny_run import Run, Watcher, differing
from weightclass import config
from weightclass.errors import UserError
from weightclass.training import optim
from weightclass.training.checkpoint import Keeper
from weightclass.training.loop import Train
from weightclass.training.schedule import Cosine


@pytest.mark.parametrize("table", [optim.SGD, optim.Adadelta, optim.AdamW])
@pytest.mark.parametrize("decay_norms", [False, True])
def test_norms_and_biases_decay_only_if_told(table: Any, decay_norms: bool) -> None:
    model = tiny_run.model()
    optimizer = optim.build(table(weight_decay=0.01, decay_norms=decay_norms), model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in model.named_parameters():
        vector = "bn" in name or name.endswith((".bias", "shortcut.1.weight"))
        assert decay.pop(id(parameter)) == (0.01 if decay_norms or not vector else 0.0), name
    assert not decay


@pytest.mark.parametrize(
    ("table", "kind", "settings"),
    [
        (
            optim.SGD(lr=0.3, momentum=0.8, nesterov=True),
            torch.optim.SGD,
            {"lr": 0.3, "momentum": 0.8, "nesterov": True},
        ),
        (optim.Adadelta(lr=0.5, rho=0.8, eps=1e-5), torch.optim.Adadelta, {"lr": 0.5, "rho": 0.8, "eps": 1e-5}),
        (
            optim.AdamW(lr=0.01, beta1=0.8, beta2=0.99, eps=1e-5),
            torch.optim.AdamW,
            {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-5},
        ),
    ],
)
def test_settings_arrive(table: Any, kind: type, settings: dict[str, Any]) -> None:
    optimizer = optim.build(table, tiny_run.model())
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert {key: group[key] for key in settings} == settings


@pytest.mark.parametrize("optimizer", [optim.SGD(nesterov=True), optim.SGD(momentum=0.0), optim.AdamW()])
def test_one_kernel_on_cuda_follows_the_rate_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: Any
) -> None:
    train = Train(epochs=2, batch_size=16)
    plain = Run(train, optimizer, Cosine())
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True)  # CPUs have these kernels, too
    whole, first, second = (Run(train, optimizer, Cosine()) for _ in range(3))
    for run, fused in ((plain, None), (whole, True)):
        assert [group["fused"] for group in run.state.optimizer.param_groups] == [fused, fused]
    plain.fit(tmp_path / "plain")
    whole.fit(tmp_path / "whole")
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(whole.tensors()[name], tensor, rtol=1e-9, atol=1e-9)
    first.fit(tmp_path / "cut", Watcher(stop_at=4))
    assert Keeper(tmp_path / "cut").load_latest(second.state)
    second.fit(tmp_path / "cut")
    assert not differing(whole.tensors(), second.tensors())


def test_adadelta_has_no_such_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True)
    assert "fused" not in optim.build(optim.Adadelta(), tiny_run.model()).defaults


@pytest.mark.parametrize(
    ("table", "mistake", "message"),
    [
        (optim.SGD, {"nesterov": True, "momentum": 0.0}, "nesterov = true needs momentum above 0"),
        (optim.SGD, {"lr": 0.0}, "lr = 0.0: expected float > 0"),
        (optim.SGD, {"momentum": 1.0}, "momentum = 1.0"),
        (optim.AdamW, {"beta2": 1.0}, "beta2 = 1.0"),
        (optim.AdamW, {"momentum": 0.9}, "unknown key momentum of adamw"),
        (optim.Adadelta, {"weight_decay": -1e-4}, "weight_decay = -0.0001"),
    ],
)
def test_refuses(table: Any, mistake: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        config.build({"name": table.__struct_config__.tag, **mistake}, table, "optimizer")
    assert message in str(caught.value)
