"""The network as it is shipped: uint8 pixels in, normalisation and folded batch norms inside, logits out."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from weightclass.model.norm import GroupBatchNorm2d


class Shipped(nn.Module):
    """Raw images [n, C, H, W] uint8 to logits float32 [n, classes]. Its `network` is a folded copy on the CPU."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: nn.Module, image_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.image_shape = image_shape
        spread = 255 * torch.tensor(std).view(1, -1, 1, 1)
        self.register_buffer("scale", 1 / spread)
        self.register_buffer("shift", -255 * torch.tensor(mean).view(1, -1, 1, 1) / spread)
        self.network = folded(network, image_shape)
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels.float() * self.scale + self.shift)

    @property
    def head(self) -> str:
        """The name of the linear layer, which every int8 file computes in float."""
        return [name for name, module in self.named_modules() if isinstance(module, nn.Linear)][-1]

    @property
    def layers(self) -> list[str]:
        """Names of the convolutions, in the order in which they are computed; without the head."""
        return [name for name, module in self.named_modules() if isinstance(module, nn.Conv2d)]


@torch.no_grad()
def folded(network: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """A float32 copy, on the CPU, in evaluation mode, whose convolutions hold the batch norms that follow them.

    A norm that follows no convolution (`folds` = False: pre-activated blocks) stays. Strided 1x1 convolutions are
    plain ones again: how they are computed is the runtime's business.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    for norm, conv in _pairs(network, image_shape):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
    for name, module in list(network.named_modules()):
        if isinstance(module, GroupBatchNorm2d) and module.folds:
            network.set_submodule(name, nn.Identity())
        elif type(module) is not nn.Conv2d and isinstance(module, nn.Conv2d):
            network.set_submodule(name, _plain(module))
    return network


def _pairs(network: nn.Module, image_shape: tuple[int, int, int]) -> list[tuple[GroupBatchNorm2d, nn.Conv2d]]:
    """Each norm that folds with the convolution whose output it is given."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by the output's address; the output too, so that it stays taken
    pairs: list[tuple[GroupBatchNorm2d, nn.Conv2d]] = []

    def convolved(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made[id(output)] = module, output

    def normed(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, GroupBatchNorm2d)
        if module.folds:
            pairs.append((module, made[id(inputs[0])][0]))

    hooks = [m.register_forward_hook(convolved) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(normed) for m in network.modules() if isinstance(m, GroupBatchNorm2d)]
    network(torch.zeros(1, *image_shape))
    for hook in hooks:
        hook.remove()
    return pairs


def _plain(conv: nn.Conv2d) -> nn.Conv2d:
    plain = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    plain.load_state_dict(conv.state_dict())
    return plain.eval()
