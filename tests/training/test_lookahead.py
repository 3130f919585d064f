"""The slow weights equal the paper's recursion; what is not a weight stays the network's own."""

from __future__ import annotations

import pytest
import torch

from tests.reference import plain_steps, tiny_run
from tests.training.test_averaging import moved
from weightclass.training.lookahead import Lookahead


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("every", [1, 3, 5])
def test_equals_the_recursion(every: int, alpha: float) -> None:
    model = tiny_run.model()
    lookahead, slow = Lookahead(model, every, alpha), [p.detach().clone() for p in model.parameters()]
    for step in range(1, 13):
        before = moved(model, step)
        fast = [before[name].clone() for name, _ in model.named_parameters()]
        if step % every == 0:
            plain_steps.pull(slow, fast, alpha)
        lookahead.update(model, step)
        for mine, theirs in zip(model.parameters(), fast, strict=True):
            torch.testing.assert_close(mine.detach(), theirs, rtol=1e-12, atol=1e-14)
        for mine, theirs in zip(lookahead.slow.parameters(), slow, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, before[name]), name


def test_at_a_meeting_both_are_the_same_and_then_they_part() -> None:
    model = tiny_run.model()
    lookahead = Lookahead(model, 2, 0.5)
    first = [p.detach().clone() for p in model.parameters()]
    moved(model, 1)
    lookahead.update(model, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, lookahead.slow.parameters(), strict=True))
    moved(model, 2)
    lookahead.update(model, 2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), lookahead.slow.parameters(), strict=True))
    moved(model, 3)
    lookahead.hand_over(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), lookahead.slow.parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in lookahead.slow.parameters())
