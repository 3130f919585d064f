"""How long networks take on this machine before anybody trains them: weights do not matter to the clock."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from weightclass.data.sources import Found
from weightclass.edge.latency import Answers, measure
from weightclass.edge.shipped import Shipped
from weightclass.model import networks
from weightclass.model.networks import Network

SECONDS = 0.5
"""Of measuring, for each network."""


def milliseconds(configs: Sequence[Network], found: Found) -> list[float]:
    """The median of one image on one thread: PyTorch, float32, norms folded; in rotation where there are several."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, *found.image_shape), dtype=np.uint8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        answers = {str(place): _answers(config, found) for place, config in enumerate(configs)}
        timings = measure(answers, pixels, SECONDS * len(configs))
    finally:
        torch.set_num_threads(threads)
    return [timings[name].p50 for name in answers]


def _answers(config: Network, found: Found) -> Answers:
    channels = found.image_shape[0]
    network = networks.build(config, found.image_shape, found.classes, seed=0)
    shipped = Shipped(network, found.image_shape, [0.5] * channels, [0.25] * channels)

    @torch.inference_mode()
    def answer(images: np.ndarray) -> np.ndarray:
        return shipped(torch.from_numpy(images)).numpy()

    return answer
