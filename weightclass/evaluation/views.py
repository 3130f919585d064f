"""Test-time views: a network looks at an image more than once and its logits are averaged.

It costs as many forward passes as there are views, so an accuracy with views is always reported apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Views = Callable[[nn.Module, Tensor], Tensor]  # a model and normalised images [n, C, H, W] to logits [n, classes]


def once(model: nn.Module, inputs: Tensor) -> Tensor:
    """1 view: the logits of each image as it is."""
    return model(inputs)


def flip(model: nn.Module, inputs: Tensor) -> Tensor:
    """2 views: the mean of the logits (not of the probabilities) of each image and its mirror."""
    return 0.5 * model(inputs) + 0.5 * model(inputs.flip(3))


def flip_shift(model: nn.Module, inputs: Tensor) -> Tensor:
    """6 views: `flip` of the image, and, with half its weight each, of the image one pixel down and right, and up and
    left (border reflected, so images of 2 x 2 pixels at least).

    Source: `infer_mirror_translate` of Keller Jordan's cifar10-airbench; arXiv 2404.00498.
    """
    height, width = inputs.shape[2:]
    padded = F.pad(inputs, (1, 1, 1, 1), "reflect")
    shifted = flip(model, padded[:, :, :height, :width]) + flip(model, padded[:, :, 2:, 2:])
    return 0.5 * flip(model, inputs) + 0.25 * shifted


VIEWS: dict[str, Views] = {"flip": flip, "flip+shift": flip_shift}
