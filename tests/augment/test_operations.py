"""What the operations draw: as often and as far as they say, and pixel for pixel what Pillow makes of those draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.augment.test_pipeline import augmented, pictures, pipeline
from tests.reference import plain_policies
from tests.reference.pictures import natural
from weightclass import seeding
from weightclass.augment import mix, ops
from weightclass.augment.operations import Draw
from weightclass.augment.policies import AUTOAUGMENT

COUNT = 10_000
SLOTS = torch.arange(COUNT)


def draw(place: int, name: str, step: int, count: int = COUNT) -> Draw:
    """The numbers that the operation at this place of a pipeline of seed 0 will draw."""
    slots = torch.arange(count)
    words = seeding.words(seeding.key(0, f"augment/{place}/{name}", step), slots)
    return Draw(words, slots, slots, 0, torch.zeros(3, dtype=torch.uint8))


def even(counts: Tensor, sigmas: float = 4.5) -> bool:
    """Whether each of these counts is what an equal chance would give."""
    mean = counts.sum() / len(counts)
    return bool(((counts - mean).abs() < sigmas * mean.sqrt()).all())


# --- Pillow, with the same numbers --------------------------------------------------------------------------


def pillows(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def apart(ours: Tensor, twins: list[Image.Image]) -> Tensor:
    """int32 [n, C, H, W]: how many levels lie between ours and the twins."""
    plain = torch.stack([torch.from_numpy(np.array(twin)) for twin in twins]).permute(0, 3, 1, 2)
    return (ours.int() - plain.int()).abs()


@pytest.mark.parametrize(
    ("policy", "count"),
    [("cifar10", 1_000), ("svhn", 1_000), ("imagenet", 1_000), pytest.param("cifar10", COUNT, marks=pytest.mark.slow)],
)
def test_the_papers_pipeline_is_the_per_image_one(policy: str, count: int) -> None:
    """AutoAugment, crop, flip, perspective on 10,000 images: equal without perspective, within a level with it."""
    names, step = (f"autoaugment({policy})", "crop(4)", "flip", "perspective(0.6)"), 17
    images = natural(count, 32, 32)
    ours = augmented(pipeline(*names, shape=(3, 32, 32)), images, step, torch.arange(count))

    auto = draw(0, "autoaugment", step, count)
    number, sign, chance = auto.integers(0, 24)[0], auto.integers(0, 1, 2), auto.uniform(2)
    window = draw(1, "crop", step, count).integers(-4, 4, 2).T.tolist()
    mirrored = draw(2, "flip", step, count).chance(0.5).tolist()
    far = draw(3, "perspective", step, count)
    right, down, turned = far.integers(0, 9, 4).T, far.integers(0, 9, 4).T, far.chance(0.5).tolist()
    inward = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    corners = torch.tensor([[0, 0], [31, 0], [31, 31], [0, 31]]) + torch.stack([right, down], 2) * inward

    twins = []
    for i, picture in enumerate(pillows(images)):
        sub = AUTOAUGMENT[policy][number[i]]
        happens = [bool(chance[place, i] < sub[place][1]) for place in range(2)]
        picture = plain_policies.autoaugment(picture, policy, int(number[i]), happens, (sign[:, i] == 0).tolist())
        picture = plain_policies.crop(picture, *window[i])
        picture = plain_policies.flip(picture) if mirrored[i] else picture
        twins.append(plain_policies.perspective(picture, corners[i].tolist()) if turned[i] else picture)

    levels = apart(ours, twins)
    assert levels[~torch.tensor(turned)].max() == 0
    assert (levels > 1).float().mean() < 0.0005  # a pixel's centre on the very edge of the image, in or out by rounding
    assert (levels > 0).float().mean() < 0.002


@pytest.mark.parametrize("family", ["randaugment", "trivialaugment"])
def test_random_policies_are_the_per_image_ones(family: str) -> None:
    count, step = 600, 3
    images = natural(count, 24, 32)
    ready = pipeline(family, shape=(3, 24, 32))
    ours = augmented(ready, images, step, torch.arange(count))
    names, drawn = ready._prepared[0].names, draw(0, family, step, count)
    twins = pillows(images)
    if family == "randaugment":
        chosen = [(drawn.integers(0, 13)[0].tolist(), drawn.integers(0, 1)[0].tolist()) for _ in range(2)]
        for i, picture in enumerate(twins):
            twins[i] = plain_policies.randaugment(
                picture, [names[number[i]] for number, _ in chosen], [sign[i] == 0 for _, sign in chosen]
            )
    else:
        number, step_, sign = (drawn.integers(0, most)[0].tolist() for most in (13, 30, 1))
        for i, picture in enumerate(twins):
            twins[i] = plain_policies.trivialaugment(picture, names[number[i]], step_[i], sign[i] == 0)
    assert apart(ours, twins).max() == 0


def test_augmix_is_the_per_image_one() -> None:
    count, step = 300, 5
    ready = pipeline("augmix(5)", shape=(3, 24, 32))
    images = natural(count, 24, 32)
    ours = augmented(ready, images, step, torch.arange(count))
    space, kept, gamma = ready._prepared[0]
    drawn = draw(0, "augmix", step, count)
    weights, own = gamma[drawn.integers(0, len(gamma) - 1, 3)], kept[drawn.integers(0, len(kept) - 1)[0]]
    shares = weights / weights.sum(0) * (1 - own)
    chains: list[list[list[plain_policies.Step]]] = [[] for _ in range(count)]
    for _ in range(3):
        length = drawn.integers(1, 3)[0].tolist()
        links = [[drawn.integers(0, most)[0].tolist() for most in (12, 4, 1)] for _ in range(3)]
        for i in range(count):
            steps = [(space.names[number[i]], bin_[i], sign[i] == 0) for number, bin_, sign in links]
            chains[i].append(steps[: length[i]])
    twins = [
        plain_policies.augmix(picture, chains[i], float(own[i]), shares[:, i].tolist())
        for i, picture in enumerate(pillows(images))
    ]
    levels = apart(ours, twins)
    assert (levels > 1).float().mean() < 0.001
    assert (levels > 0).float().mean() < 0.02  # the fraction is cut off: 99.9999 is 99


# --- how often, how far ------------------------------------------------------------------------------------


def test_sub_policies_come_equally_often_and_their_operations_as_often_as_published() -> None:
    drawn = draw(0, "autoaugment", 0)
    number, sign, chance = drawn.integers(0, 24)[0], drawn.integers(0, 1, 2), drawn.uniform(2)
    assert even(torch.bincount(number, minlength=25))
    joint = number * 2 + sign[0]
    assert even(torch.bincount(joint, minlength=50))
    for place in range(2):
        for sub, steps in enumerate(AUTOAUGMENT["cifar10"]):
            p, happened = steps[place][1], chance[place, number == sub] < steps[place][1]
            assert abs(happened.float().mean() - p) < 4.5 * math.sqrt(p * (1 - p) / len(happened)) + 1e-6


def test_alternating_flips_take_turns() -> None:
    ours, images = pipeline("altflip"), pictures(1).repeat(COUNT, 1, 1, 1)
    first, second, third = (
        (augmented(ours, images, step, SLOTS, epoch) != images).flatten(1).any(1)
        for epoch, step in enumerate((5, 99, 300))
    )
    assert abs(first.float().mean() - 0.5) < 0.02
    assert torch.equal(second, ~first)
    assert torch.equal(third, first)
    other = (augmented(pipeline("altflip", seed=1), images, 5, SLOTS) != images).flatten(1).any(1)
    assert 0.4 < (other == first).float().mean() < 0.6


def test_perspective_corners_reach_as_far_as_they_say() -> None:
    """scale 0.6 of 32 pixels: int(0.6 * 16) = 9 pixels inwards at most, every one as likely."""
    moved = draw(0, "perspective", 0).integers(0, 9, 8)
    assert all(even(torch.bincount(corner, minlength=10)) for corner in moved)
    white = torch.full((2_000, 1, 32, 32), 255, dtype=torch.uint8)
    seen = augmented(pipeline("perspective(0.6, 1)", shape=(1, 32, 32)), white, 0, torch.arange(2_000))[:, 0]
    assert (seen[:, 10:22, 10:22] == 255).all()
    assert (seen[:, 0, 0] == 0).float().mean() > 0.9


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_shares_are_betas(name: str) -> None:
    """Beta(1, 1) is uniform: mean 1/2, variance 1/12 (cutmix: up to the clipped boxes, which leave more)."""
    from weightclass.batching import Batch

    batch = Batch(pictures(2).repeat(COUNT // 2, 1, 1, 1), SLOTS % 2, SLOTS, SLOTS)
    kept = pipeline(name, shape=(3, 8, 8)).augment(batch, 0, 0).labels.gather(1, (SLOTS % 2)[:, None])
    if name == "mixup":
        assert abs(kept.mean() - 0.5) < 0.012
        assert abs(kept.var() - 1 / 12) < 0.004
    else:
        assert 0.6 < kept.mean() < 0.8
    never = pipeline(f"{name}(1, 0)").augment(batch, 0, 0)
    assert torch.equal(never.images, batch.images)
    assert torch.equal(never.labels.argmax(1), batch.labels)


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 8, 64), (3, 64, 8)])
def test_erased_rectangles_are_of_their_size(shape: tuple[int, int, int]) -> None:
    black = torch.zeros(2_000, *shape, dtype=torch.uint8)
    hole = augmented(pipeline("erase(1, 0.1, 0.2)", shape=shape), black, 0, torch.arange(2_000))[:, 0] > 0
    area = hole.flatten(1).float().mean(1)
    assert 0.08 < area.min() < 0.11
    assert 0.19 < area.max() < 0.22
    if shape[1] != shape[2]:
        return
    stretch = hole.any(2).sum(1) / hole.any(1).sum(1)
    assert 0.25 < stretch.min() < 0.36
    assert 2.8 < stretch.max() < 4


def test_noise_is_normal() -> None:
    grey = torch.full((64, 3, 8, 8), 128, dtype=torch.uint8)
    drawn = draw(0, "noise", 0, 64)
    drawn.prepared = mix.normal_quantiles()
    numbers = drawn.normal(grey.shape)
    assert torch.isfinite(numbers).all()
    assert abs(numbers.mean()) < 0.03
    assert abs(numbers.std() - 1) < 0.03
    assert (numbers[0] != numbers[1]).any()
    assert augmented(pipeline("noise(20, 1)"), grey, 0, torch.arange(64)).float().std() > 5


@pytest.mark.parametrize(("operation", "p"), [("flip", 0.5), ("flip(0.1)", 0.1), ("flip(1)", 1.0), ("flip(0)", 0.0)])
def test_flips_as_often_as_told(operation: str, p: float) -> None:
    count = 10_000
    images = pictures(1).repeat(count, 1, 1, 1)
    flipped = (augmented(pipeline(operation), images, 5, torch.arange(count)) != images).flatten(1).any(1)
    assert abs(flipped.float().mean() - p) <= 4 * math.sqrt(p * (1 - p) / count)


def test_every_crop_offset_is_as_likely() -> None:
    count, padding = 10_000, 2
    grid = torch.stack([torch.arange(8).view(8, 1).expand(8, 8), torch.arange(8).expand(8, 8)]).to(torch.uint8)
    seen = augmented(pipeline(f"crop({padding})", shape=(2, 8, 8)), grid.repeat(count, 1, 1, 1), 0, torch.arange(count))
    down, right = seen[:, :, 4, 4].long().T - 4  # the centre pixel tells how far the window moved
    counts = torch.bincount((down + padding) * 5 + right + padding, minlength=25)
    assert len(counts) == 25
    chi_square = ((counts - count / 25) ** 2 / (count / 25)).sum()
    assert 9 < chi_square < 46  # 24 degrees of freedom: 0.5 % on either side
    pairs = zip(down.tolist(), right.tolist(), strict=True)
    for place, (d, r) in enumerate(list(pairs)[:50]):
        moved = ops.crop(grid[None], torch.tensor([d]), torch.tensor([r]), padding)[0]
        assert torch.equal(seen[place], moved)


def test_cutout_centres_cover_the_image_and_fill_with_the_mean() -> None:
    count = 6_400
    holes = augmented(pipeline("cutout(1)"), torch.zeros(count, 3, 8, 8, dtype=torch.uint8), 0, torch.arange(count))
    assert torch.equal(holes.flatten(2).amax(2).unique(dim=0), torch.tensor([[128, 64, 191]], dtype=torch.uint8))
    hits = (holes[:, 0] > 0).sum(0)
    assert hits.sum() == count
    assert 60 < hits.min() < hits.max() < 145  # 100 each, four sigma


def test_cutout_is_centred() -> None:
    hole = (
        augmented(pipeline("cutout(4)"), torch.zeros(500, 3, 8, 8, dtype=torch.uint8), 0, torch.arange(500))[:, 0] > 0
    )
    sides = hole.flatten(1).sum(1)
    assert sides.max() == 16
    assert sides.min() == 4  # centred on a corner: a quarter of the square is inside
