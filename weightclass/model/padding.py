"""Channels rounded up to multiples of 8, which is what matrix units take at once: the same function, faster there.

All that an extra channel has is zero: the weights that make it, its norm's scale and shift, the weights that read it.
So it is zero (every activation keeps that), its gradients are exactly zero, and no optimizer, decay or average moves
it. This is how a machine computes: what is counted, judged and shipped is the network without it.
"""

from __future__ import annotations

import torch
from msgspec import structs
from torch import Tensor, nn

from weightclass.model import networks
from weightclass.model.networks import Network
from weightclass.model.resnet import ResNetConfig

Shape = tuple[int, int, int]


def wider(config: Network) -> Network:
    """`config` with its channels rounded up; itself where that would change the network or is not known not to."""
    if not isinstance(config, ResNetConfig):
        return config
    channels, stem = tuple(-(-each // 8) * 8 for each in config.channels), -(-config.stem_channels // 8) * 8
    wide = structs.replace(config, channels=channels, stem_channels=stem)
    projects = config.stem != config.channels[0]
    return wide if projects == (wide.stem != wide.channels[0]) else config  # whose first shortcut would be another


def padded(model: nn.Module, config: Network, image_shape: Shape, classes: int) -> nn.Module:
    """`model`, the network of `config` for images of `image_shape` (C, H, W), as that of `wider(config)`."""
    return _resized(model, wider(config), image_shape, classes)


def unpadded(model: nn.Module, config: Network, image_shape: Shape, classes: int) -> nn.Module:
    """The network of `config` that `model` computes, padded or not; it shares no memory with a padded one."""
    return _resized(model, config, image_shape, classes)


def _resized(model: nn.Module, config: Network, image_shape: Shape, classes: int) -> nn.Module:
    like, tensors = networks.build(config, image_shape, classes), model.state_dict()
    shapes = {name: tensor.shape for name, tensor in like.state_dict().items()}
    if all(tensors[name].shape == shape for name, shape in shapes.items()):
        return model
    like.load_state_dict({name: corner(tensors[name], shape) for name, shape in shapes.items()}, assign=True)
    return like.to(memory_format=torch.channels_last).train(model.training)  # type: ignore[call-overload]


def corner(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A new tensor of `shape`: what of `tensor` lies in it, zeros elsewhere."""
    result = tensor.new_zeros(shape)
    shared = tuple(slice(min(sizes)) for sizes in zip(tensor.shape, shape, strict=True))
    result[shared] = tensor[shared]
    return result
