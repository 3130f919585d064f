"""From images to logits, where every judgement begins: what follows needs no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from weightclass.device import out_of_memory
from weightclass.errors import UserError
from weightclass.evaluation.views import Views, once
from weightclass.runlog import Progress

BATCH_SIZE = 250  # a 128-wide ResNet at 32x32 then peaks at 0.6 GB of activations on a CPU, at no loss of speed


class Images(Protocol):
    """uint8 [N, C, H, W]: a tensor, or what reads from disk the rows that it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


def logits(
    model: nn.Module,
    images: Images,
    normalise: Callable[[Tensor], Tensor],
    batch_size: int = BATCH_SIZE,
    progress: Progress | None = None,
    views: Views = once,
) -> Tensor:
    """float32 [N, classes] on the model's device for uint8 `images` [N, C, H, W] anywhere, read batch by batch. Leaves
    the model in evaluation mode.

    `normalise` makes the float32 input of a uint8 batch on the model's device, `views` the logits of an input (see
    `views.VIEWS`; one look at each image if left out). The batch size changes memory and time, and the logits only
    by float rounding; where memory does not suffice it is halved. `progress(done, total)` counts images, after each
    batch. Raises UserError where not even one image fits.
    """
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))  # an exported file has none

    def look(batch: Tensor) -> Tensor:  # a function, so that nothing of a batch outlives it
        return views(model, normalise(batch.to(device)).to(memory_format=torch.channels_last)).float()

    parts: list[Tensor] = []
    done = 0
    model.eval()
    with torch.inference_mode():
        while done < len(images) or not parts:
            try:
                parts.append(look(images[done : done + batch_size]))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                batch_size = min(batch_size, len(images)) // 2
                if not batch_size:
                    raise UserError(
                        "no memory to judge even one image: close other programs, or use another device"
                    ) from None
                continue
            done += len(parts[-1])
            if progress:
                progress(done, len(images))
    return torch.cat(parts)  # outside inference mode: an ordinary tensor, which a fitted temperature may differentiate
