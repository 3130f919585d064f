"""Images mixed with a partner of their batch, labels with them: deterministic whole-batch operations, and the tables
that make a draw from a Beta or Gamma distribution one integer of the counter hash, the same on every device.

Targets are probabilities float32 [n, classes]; partners int64 [n] are places in the batch at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from weightclass.augment import ops


def mixup(images: Tensor, targets: Tensor, share: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """`share` (float32 [n] in [0, 1], taken in steps of 2^-16) of each image and its targets, the rest its partner's.

    Images are uint8 [n, C, H, W]. Source: Zhang et al. 2018, arXiv 1710.09412.
    """
    share = (share * 65536).round() / 65536  # 16 bits x 8 bits are exact in float32: equal levels on every device
    blend = torch.lerp(images.index_select(0, partner).float(), images.float(), share.view(-1, 1, 1, 1))
    return blend.round_().int().to(torch.uint8), _mixed(targets, share, partner)  # by way of int32: twice as fast


def cutmix(
    images: Tensor, targets: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, partner: Tensor
) -> tuple[Tensor, Tensor]:
    """Each image with a box (int64 [n] each; parts outside are lost) of its partner's pixels in the same place; targets
    by the area that remains. Images are uint8 [n, C, H, W]. Source: Yun et al. 2019, arXiv 1905.04899.
    """
    inside = ops.box(images, top, left, height, width)
    # own + (partner - own) * inside, modulo 256: an eighth of the time of `torch.where` on bytes
    pasted = images.index_select(0, partner).sub_(images).mul_(inside).add_(images)
    share = 1 - inside.flatten(1).float().mean(1)
    return pasted, _mixed(targets, share, partner)


def _mixed(targets: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    return torch.lerp(targets.index_select(0, partner), targets, share.unsqueeze(1))


def box(
    share: Tensor, centre_row: Tensor, centre_column: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """CutMix's box, top, left, height, width (int64 [n]), in images of `height` x `width`: sides sqrt(1 - share) of the
    image's (rounded down to even pixels) about a pixel (int64 [n] each), clipped; so more than `share` may remain."""
    side = (1 - share).sqrt() / 2
    half_height, half_width = (side * height).long(), (side * width).long()
    top, left = (centre_row - half_height).clamp(min=0), (centre_column - half_width).clamp(min=0)
    bottom, right = (centre_row + half_height).clamp(max=height), (centre_column + half_width).clamp(max=width)
    return top, left, bottom - top, right - left


def partners(slots: Tensor) -> Tensor:
    """int64 [n]: where the partner of each image lies, given the images' places in the global batch, `slots`.

    Slot s is paired with s ^ 1: the epoch's order has drawn the pairs already, and micro-batches and ranks that hold
    whole pairs, lower slot first, see the same ones. An image whose neighbour does not lie there is its own partner.
    """
    own = torch.arange(len(slots), device=slots.device)
    place = (own + 1 - 2 * (slots & 1)).clamp(0, len(slots) - 1)
    return torch.where(slots.gather(0, place) == slots ^ 1, place, own)


def beta_quantiles(alpha: float, beta: float, count: int = 4096) -> Tensor:
    """float32 [count] on the CPU: Beta(alpha, beta) at (i + 0.5) / count, of which a uniform i draws one."""
    from scipy.special import betaincinv

    return _quantiles(partial(betaincinv, alpha, beta), count)


def gamma_quantiles(alpha: float, count: int = 4096) -> Tensor:
    """float32 [count] on the CPU, all above 0: Gamma(alpha, 1) at (i + 0.5) / count. k draws over their sum are one of
    the Dirichlet distribution with k equal parameters `alpha`."""
    from scipy.special import gammaincinv

    return _quantiles(partial(gammaincinv, alpha), count).clamp(min=torch.finfo(torch.float32).tiny)


def normal_quantiles(count: int = 65_536) -> Tensor:
    """float32 [count] on the CPU: the standard normal distribution at (i + 0.5) / count."""
    from scipy.special import ndtri

    return _quantiles(ndtri, count)


def _quantiles(inverse: Callable[[np.ndarray], np.ndarray], count: int) -> Tensor:
    return torch.from_numpy(inverse((np.arange(count) + 0.5) / count)).float()
