"""Parts that more than one network is built of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from weightclass.model.norm import GroupBatchNorm2d, still

relu6 = partial(F.relu6, inplace=True)


class Recomputed(nn.Module):
    """A block that can trade time for memory; what it does to its input is `_compute`."""

    recompute: bool = False
    """In training, hold only the input for the backward pass and compute the rest again there: the same numbers."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.recompute and self.training):
            return self._compute(x)
        # A compiled graph moves the running statistics once however often it computes, and takes no contexts.
        contexts: dict[str, Any] = {"context_fn": lambda: (nullcontext(), still(self))}
        contexts = {} if torch.compiler.is_compiling() else contexts
        return checkpoint(self._compute, x, use_reentrant=False, preserve_rng_state=False, **contexts)

    def _compute(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class SqueezeExcite(nn.Module):
    """Scales each channel by what two small layers make of the means of all channels (Hu et al. 2018)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        squeezed = max(channels // reduction, 1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, H, W] to the same shape."""
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(means))))


class InvertedResidual(Recomputed):
    """project(se(depthwise(expand(x)))), plus x where the shape stays: wide inside, narrow and linear outside.

    Sandler et al. 2018. With another `kernel`, and a squeeze `reduction` times narrower than the inside (0: none), the
    block of Tan & Le 2019 (EfficientNet).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        stride: int,
        kernel: int = 3,
        activation: Callable[[Tensor], Tensor] = relu6,
        reduction: int = 0,
    ) -> None:
        super().__init__()
        inside = inputs * expansion
        self.expand = _normed(inputs, inside, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _normed(inside, inside, kernel, stride, groups=inside)
        self.se = SqueezeExcite(inside, reduction) if reduction else nn.Identity()
        self.project = _normed(inside, outputs, 1)
        self.expands, self.residual = expansion > 1, stride == 1 and inputs == outputs
        self.activation = activation

    def _compute(self, x: Tensor) -> Tensor:
        y = self.activation(self.expand(x)) if self.expands else x
        y = self.project(self.se(self.activation(self.depthwise(y))))
        if self.residual:
            y += x
        return y


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, GroupBatchNorm2d(outputs))


class StridedPointwise(nn.Conv2d):
    """A strided 1x1 convolution as a choice of pixels and a dense one: the same numbers.

    oneDNN's own kernel writes beyond its workspace, and so crashes, where a vector holds more channels than there are
    (channels last, backward, CPU; its issue 6035).
    """

    def forward(self, input: Tensor) -> Tensor:
        down, right = self.stride
        return F.conv2d(input[:, :, ::down, ::right], self.weight, self.bias)
