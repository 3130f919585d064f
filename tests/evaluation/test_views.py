"""Test-time views against one view of one image at a time, shifted pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from weightclass.evaluation import predict
from weightclass.evaluation.views import VIEWS, flip, flip_shift, once


class Net(nn.Module):
    """Sees where a pixel stands, and answers differently to twice the input; it counts what it is shown."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.sin(torch.arange(pixels * 3.0)).reshape(3, pixels))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return torch.tanh(x.flatten(1) @ self.weight.T)


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """The image moved; what comes in is its reflection, the border pixel not repeated."""
    _, height, width = image.shape
    moved = torch.empty_like(image)
    for row in range(height):
        for column in range(width):
            y, x = row - down, column - right
            y, x = [abs(i) if i < size else 2 * (size - 1) - i for i, size in ((y, height), (x, width))]
            moved[:, row, column] = image[:, y, x]
    return moved


def plain(net: Net, image: Tensor, shift: bool) -> Tensor:
    """The mean of the logits by the definition: (weight, view) one by one."""
    views = [(0.25, image), (0.25, image.flip(2))]
    if shift:
        moved = [shifted(image, 1, 1), shifted(image, -1, -1)]
        views += [(0.125, view) for each in moved for view in (each, each.flip(2))]
    return sum(weight * net(view[None])[0] for weight, view in views) / sum(weight for weight, _ in views)


@given(st.integers(2, 6), st.integers(2, 6), st.integers(1, 3))
def test_equals_one_view_at_a_time(height: int, width: int, channels: int) -> None:
    images = torch.cos(torch.arange(3.0 * channels * height * width)).reshape(3, channels, height, width)
    net = Net(channels * height * width)
    for view, shift in ((flip, False), (flip_shift, True)):
        expected = torch.stack([plain(net, image, shift) for image in images])
        torch.testing.assert_close(view(net, images), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(once(net, images), net(images))


@pytest.mark.parametrize(("view", "count"), [(once, 1), (VIEWS["flip"], 2), (VIEWS["flip+shift"], 6)])
def test_predict_looks_once_or_as_often_as_asked(view: object, count: int) -> None:
    images = (torch.arange(10 * 3 * 16) % 251).to(torch.uint8).reshape(10, 3, 4, 4)
    net = Net(48)
    found = predict.logits(net, images, lambda x: x.float() / 255, batch_size=4, views=view)  # type: ignore[arg-type]
    assert found.shape == (10, 3) and net.seen == 10 * count
    torch.testing.assert_close(found, view(net, images.float() / 255).detach())  # type: ignore[operator]
