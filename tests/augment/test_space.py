"""Every row of a space is its operation as Pillow does it, whatever the other images of the batch drew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.reference import plain_policies
from tests.reference.pictures import natural
from weightclass import seeding
from weightclass.augment import policies
from weightclass.augment.space import Space, Strengths

CPU = torch.device("cpu")
FAMILIES = {
    "autoaugment": policies.auto_strengths(10, 24, 32) | {"Invert": ([0.0], False)},
    "trivialaugment": policies.wide_strengths(31),
}


def drawn(count: int, below: int, purpose: str = "rows") -> Tensor:
    return seeding.integers(seeding.key(0, purpose), torch.arange(count), 0, below - 1)[0]


def steps(strengths: Strengths) -> list[tuple[str, float]]:
    """Operation and signed magnitude of every place of `Space.index`, in its order."""
    count = max(len(magnitudes) for magnitudes, _ in strengths.values())
    return [
        (name, -magnitudes[bin_ % len(magnitudes)] if signed and sign == 0 else magnitudes[bin_ % len(magnitudes)])
        for name, (magnitudes, signed) in strengths.items()
        for bin_ in range(count)
        for sign in range(2)
    ]


def twin(image: Tensor, name: str, magnitude: float, interpolation: str = "nearest") -> np.ndarray:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    return np.asarray(plain_policies.apply_op(picture, name, magnitude, interpolation)).transpose(2, 0, 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("height", [24, 32])  # Pillow turns squares by quarters in its own way
def test_every_row_is_its_operation(family: str, height: int) -> None:
    strengths = FAMILIES[family]
    space, every = Space(strengths, height, 32, CPU), steps(strengths)
    order = seeding.permutation(1, len(every))  # all operations side by side
    images = natural(len(every), height, 32)
    before = images.clone()
    ours = space.apply(images, space.index.flatten()[order]).numpy()
    assert torch.equal(images, before)
    for place, image, found in zip(order.tolist(), images, ours, strict=True):
        np.testing.assert_array_equal(found, twin(image, *every[place]), err_msg=str(every[place]))


def test_row_0_is_the_identity_and_an_empty_batch_is_one() -> None:
    space, images = Space(FAMILIES["autoaugment"], 24, 32, CPU), natural(4, 24, 32)
    assert torch.equal(space.apply(images, torch.zeros(4, dtype=torch.int64)), images)
    assert space.apply(images[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 24, 32)


def test_bilinear_warps_are_within_a_level() -> None:
    strengths = policies.mix_strengths(24, 32)
    space, every = Space(strengths, 24, 32, CPU, "bilinear"), steps(strengths)
    images = natural(len(every), 24, 32)
    ours = space.apply(images, space.index.flatten()).numpy().astype(int)
    twins = np.stack([twin(i, *step, "bilinear") for i, step in zip(images, every, strict=True)]).astype(int)  # type: ignore[arg-type]
    assert (np.abs(ours - twins) > 1).mean() < 0.001  # of pixels, on the border of the image


def test_chosen_or_masked_is_the_same() -> None:
    """A CPU computes the images that drew an operation, a compiled graph or a GPU computes all and chooses."""
    space = Space(FAMILIES["trivialaugment"], 24, 32, CPU)
    images, rows = natural(200, 24, 32), drawn(200, len(space.kind))
    compiled = torch.compile(space.apply, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images, rows), space.apply(images, rows))
