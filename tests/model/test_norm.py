from __future__ import annotations

import copy
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from tests.reference.threads import Threads
from weightclass.model.norm import GroupBatchNorm2d, still


def norms(group: int | None) -> tuple[GroupBatchNorm2d, nn.BatchNorm2d]:
    ours, plain = GroupBatchNorm2d(3), nn.BatchNorm2d(3)
    for norm in (ours, plain):
        norm.weight.data.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.data.copy_(torch.tensor([0.1, -0.2, 0.0]))
    ours.group = group
    return ours, plain


def images(n: int, side: int = 4) -> Tensor:
    return torch.sin(torch.arange(n * 3 * side * side, dtype=torch.float32) ** 1.1).view(n, 3, side, side)


def step(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * torch.cos(torch.arange(y[0].numel()).view_as(y[0]))).square().sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@pytest.mark.parametrize("group", [None, 8, 7, 100])  # 7: the eighth image joins the only group
def test_one_group_is_plain_batch_norm(group):
    ours, plain = norms(group)
    for mine, theirs in zip(step(ours, images(8)), step(plain, images(8)), strict=True):
        assert torch.equal(mine, theirs)
    for (name, mine), theirs in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    assert torch.equal(ours.eval()(images(5)), plain.eval()(images(5)))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_two_groups_are_two_micro_batches(momentum):
    whole, _ = norms(4)
    whole.momentum = momentum
    parts = copy.deepcopy(whole)
    parts.group = None
    output, gradient = step(whole, images(8))
    pieces = [step(parts, chunk) for chunk in images(8).split(4)]
    assert torch.equal(output, torch.cat([piece[0] for piece in pieces]))
    torch.testing.assert_close(gradient, torch.cat([piece[1] for piece in pieces]))
    torch.testing.assert_close(whole.weight.grad, parts.weight.grad)
    for (name, mine), theirs in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_groups_do_not_see_each_other():
    norm, _ = norms(4)
    changed = images(8)
    changed[4:] += 3 * images(9)[5:]
    assert torch.equal(norm(images(8))[:4], norm(changed)[:4])
    assert not torch.equal(norm(images(8))[4:], norm(changed)[4:])


def test_evaluation_ignores_groups():
    norm, plain = norms(2)
    assert torch.equal(norm.eval()(images(7)), plain.eval()(images(7)))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_passes_that_leave_the_statistics_alone(momentum):
    norm, _ = norms(4)
    norm.momentum = momentum
    expected = step(norm, images(8))
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items() if "running" in name or "num" in name}
    norm.weight.grad = norm.bias.grad = None
    with still(norm):
        outcome = step(norm, images(8))
    with pytest.raises(ZeroDivisionError), still(norm):
        raise ZeroDivisionError(norm(images(8)))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(outcome, expected, strict=True))
    assert all(torch.equal(norm.state_dict()[name], tensor) for name, tensor in before.items())
    norm(images(8))
    assert norm.num_batches_tracked == before["num_batches_tracked"] + 2  # two groups


def test_a_last_image_alone_joins_the_group_before():
    norm, _ = norms(4)
    assert norm(images(9, side=1)).isfinite().all()


def test_memory_format_is_kept():
    norm, _ = norms(2)
    output = norm(images(6).to(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)


def passed(norm: nn.Module, x: Tensor, weights: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What belongs to the images (output, gradient), what is summed over them, and what moved."""
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * weights).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad], [norm.weight.grad, norm.bias.grad], [*norm.buffers()]


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("sizes", [(4, 4), (2, 3, 7), (2,)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_batch_shared_by_ranks_is_normalised_as_a_whole(sizes, dtype, monkeypatch):
    """bfloat16: with weights of float32, as under autocast."""
    pictures, weights = (images(sum(sizes)) + 3).to(dtype), images(sum(sizes)).flip(0).to(dtype)
    whole, precise = norms(None)[0].double(), torch.float64 if dtype == torch.float64 else torch.float32

    def part(rank: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        norm = norms(None)[0].to(precise)
        norm.shared = True
        return passed(norm, pictures.split(sizes)[rank], weights.split(sizes)[rank])

    own, summed, moved = zip(*Threads(monkeypatch, len(sizes)).run(part), strict=True)
    assert all(torch.equal(mine, first) for each in moved for mine, first in zip(each, moved[0], strict=True))
    found = [*map(torch.cat, zip(*own, strict=True)), *map(sum, zip(*summed, strict=True)), *moved[0]]
    assert [each.dtype for each in found[:4]] == [dtype, dtype, precise, precise]
    for ours, theirs in zip(found, chain(*passed(whole, pictures.double(), weights.double())), strict=True):
        tolerance = TOLERANCE[dtype] * theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=tolerance)
