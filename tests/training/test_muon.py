from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tests.reference import tiny_run
from tests.reference.plain_airbench import PlainMuon
from tests.reference.tiny_run import Run, Watcher, differing
from weightclass.model import networks
from weightclass.model.airbench import AirbenchConfig
from weightclass.training import muon, optim
from weightclass.training.loop import Train
from weightclass.training.schedule import OneCycle


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_newton_schulz_brings_singular_values_near_one() -> None:
    for shape in ((3, 16, 40), (2, 40, 16), (1, 8, 8)):
        matrices = draws(*shape)
        turned = muon.newton_schulz(matrices, 5)
        values = torch.linalg.svdvals(turned)
        assert values.min() > 0.3  # the square one has singular values next to 0
        assert values.max() < 1.25
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        torch.testing.assert_close(left.mT @ turned @ right.mT, torch.diag_embed(values), atol=0.5, rtol=0)


def test_steps_are_those_of_the_plain_twin() -> None:
    """Several shapes at once, some alike, over ten steps."""
    shapes = [(8, 3, 3, 3), (6, 8, 1, 1), (8, 3, 3, 3), (4, 6, 3, 3)]
    ours, theirs = ([nn.Parameter(draws(*shape, seed=i)) for i, shape in enumerate(shapes)] for _ in range(2))
    group = {"params": ours, "orthogonal": True, "beta": 0.6, "steps": 3, "unit": True}
    optimizer, plain = muon.Muon([group], lr=0.1), PlainMuon(theirs, lr=0.1, momentum=0.6)
    for step in range(10):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad, b.grad = draws(*a.shape, seed=100 * step + i), draws(*a.shape, seed=100 * step + i)
        optimizer.step()
        plain.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_each_channel_of_a_depthwise_convolution_steps_alone() -> None:
    """By `lr`, at norm 1: Newton-Schulz of a matrix of one row is a multiple of the row."""
    weight, plain = nn.Parameter(draws(5, 1, 3, 3)), list(draws(5, 1, 9))
    group = {"params": [weight], "orthogonal": True, "depthwise": True, "beta": 0.6, "steps": 3, "unit": True}
    optimizer, buffers = muon.Muon([group], lr=0.1), [torch.zeros(1, 9, dtype=torch.float64) for _ in plain]
    for step in range(3):
        weight.grad = draws(5, 1, 3, 3, seed=step + 1)
        for i, gradient in enumerate(weight.grad.clone().flatten(2)):
            buffers[i] = 0.6 * buffers[i] + gradient
            direction = muon.newton_schulz((gradient + 0.6 * buffers[i])[None], 3)[0]
            plain[i] = plain[i] / plain[i].norm() - 0.1 * direction / direction.norm()
        optimizer.step()
    torch.testing.assert_close(weight.detach().flatten(2), torch.stack(plain), rtol=1e-9, atol=1e-12)


def test_torchs_own_takes_the_same_direction() -> None:
    """On a flattened convolution, but for its bfloat16, its momentum's scale and the size of its step."""
    weight, flat = nn.Parameter(torch.zeros(8, 3, 3, 3)), nn.Parameter(torch.zeros(8, 27))
    group = {"params": [weight], "orthogonal": True, "beta": 0.9, "steps": 5, "unit": False}
    ours = muon.Muon([group], lr=0.1)
    theirs = torch.optim.Muon([flat], lr=0.1, weight_decay=0.0, momentum=0.9, ns_steps=5)
    for step in range(3):
        weight.grad = draws(8, 3, 3, 3, seed=step).float()
        flat.grad = weight.grad.view(8, 27).clone()
        ours.step()
        theirs.step()
    assert torch.cosine_similarity(weight.detach().view(1, -1), flat.detach().view(1, -1)).item() > 0.99


def test_convolutions_that_a_norm_follows_are_turned_and_nothing_else() -> None:
    model = tiny_run.model()
    optimizer = optim.build(optim.Muon(lr=0.2, sgd_lr=0.05, vector_lr=10.0, weight_decay=0.01), model)
    names = {id(p): name for name, p in model.named_parameters()}
    turned, weights, vectors = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert turned == {name for name, p in model.named_parameters() if p.ndim == 4}
    assert weights == {"linear.weight"}
    assert vectors == set(names.values()) - turned - weights
    scales = [group.get("scale", 1) * 0.2 for group in optimizer.param_groups]
    torch.testing.assert_close(scales, [0.2, 0.05, 10.0])
    decays = [group["weight_decay"] * rate for group, rate in zip(optimizer.param_groups, scales, strict=True)]
    torch.testing.assert_close(decays, [0.0, 0.01, 0.01])


def test_depthwise_convolutions_are_a_group_of_their_own() -> None:
    model = networks.build(AirbenchConfig(channels=(8,), depthwise=3), (3, 8, 8), 10)
    dense, depthwise, *_ = optim.build(optim.Muon(), model).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert not dense["depthwise"]
    assert depthwise["depthwise"]
    assert [names[id(p)] for p in dense["params"]] == ["layer1.convs.0.1.weight", "layer1.convs.1.1.weight"]
    assert [names[id(p)] for p in depthwise["params"]] == ["layer1.convs.0.0.weight", "layer1.convs.1.0.weight"]


def test_frozen_weights_stay(tmp_path: Path) -> None:
    model = tiny_run.model()
    model.get_parameter("conv1.weight").requires_grad_(False)
    optimizer = optim.build(optim.Muon(), model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters())) - 1


def test_padding_changes_nothing() -> None:
    """Rows and columns of zeros, whose gradients are zero."""
    weight, gradient = draws(6, 5, 3, 3), draws(6, 5, 3, 3, seed=1)
    results = []
    for shape in ((6, 5, 3, 3), (8, 8, 3, 3)):
        wide, its = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        wide[:6, :5], its[:6, :5] = weight, gradient
        parameter = nn.Parameter(wide)
        parameter.grad = its
        muon.Muon([{"params": [parameter], "orthogonal": True, "beta": 0.6, "steps": 3, "unit": True}], lr=0.1).step()
        results.append(parameter.detach())
    torch.testing.assert_close(results[1][:6, :5], results[0], rtol=1e-9, atol=1e-12)
    assert results[1].abs().sum() == results[1][:6, :5].abs().sum()


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    train, schedule = Train(epochs=3, batch_size=16), OneCycle(peak=0.3)
    whole = Run(train, optim.Muon(lr=0.05, vector_lr=1.0), schedule)
    whole.fit(tmp_path / "whole")
    for stop in (2, 7):
        parts = Run(train, optim.Muon(lr=0.05, vector_lr=1.0), schedule)
        parts.fit(tmp_path / f"parts{stop}", Watcher(stop_at=stop))
        rest = Run(train, optim.Muon(lr=0.05, vector_lr=1.0), schedule)
        rest.fit(tmp_path / f"parts{stop}")
        assert differing(whole.tensors(), rest.tensors()) == []
