"""What a recipe's text means, which mistakes it refuses, and that a picture hangs on (seed, step, slot) alone."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weightclass import config, seeding
from weightclass.augment import ops
from weightclass.augment.pipeline import OPERATIONS, Augment, Pipeline, check, parse
from weightclass.errors import UserError

ALL = ("crop(2)", "flip", "cutout(3)", "crop(1, reflect)", "flip(0.3)")


def pipeline(*operations: str, seed: int = 0, shape: tuple[int, int, int] = (3, 8, 8)) -> Pipeline:
    parsed = check(Augment(ops=operations), shape)
    return Pipeline(parsed, (0.5, 0.25, 0.75)[: shape[0]], (0.25,) * shape[0], seed, torch.device("cpu"))


def pictures(count: int) -> Tensor:
    bits = seeding.bits(seeding.key(0, "pictures"), torch.arange(count * 192))[0]
    return (bits & 255).to(torch.uint8).view(count, 3, 8, 8)


# --- text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("flip", "flip", {}),
        (" flip() ", "flip", {}),
        ("flip(0.25)", "flip", {"p": 0.25}),
        ("flip(p=1)", "flip", {"p": 1.0}),
        ("crop(4)", "crop", {"padding": 4}),
        ("crop( 4 , reflect )", "crop", {"padding": 4, "mode": "reflect"}),
        ("crop(4, 'zero')", "crop", {"padding": 4, "mode": "zero"}),
        ("crop(mode=reflect, padding=2)", "crop", {"padding": 2, "mode": "reflect"}),
        ("cutout(8)", "cutout", {"size": 8}),
    ],
)
def test_reads(text: str, name: str, arguments: dict[str, object]) -> None:
    assert parse(text) == (name, arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flipp", "unknown operation 'flipp': did you mean flip?"),
        ("mixture(2)", "unknown operation 'mixture': choose from flip, crop, cutout"),
        ("crop", "'crop': missing a required argument: 'padding'; usage: crop(padding, mode)"),
        ("crop(4, zero, 1)", "too many positional arguments; usage: crop(padding, mode)"),
        ("cutout(8, size=8)", "multiple values for argument 'size'"),
        ("crop(4, side=2)", "unexpected keyword argument 'side'"),
        ("crop(four)", "Expected `int`, got `str`"),
        ("crop(4.5)", "Expected `int`, got `float`"),
        ("crop(True)", "Expected `int`, got `bool`"),
        ("crop(0)", "Expected `int` >= 1"),
        ("crop(-4)", "Expected `int` >= 1"),
        ("crop(4, mirror)", "Invalid enum value 'mirror'"),
        ("flip(1.5)", "Expected `float` <= 1.0"),
        ("crop(__import__('os'))", "cannot read"),
        ("crop(2 + 2 * 2)", "cannot read"),
        ("crop(*[4])", "cannot read"),
        ("crop({[]})", "cannot read"),
        ("crop(4)(4)", "cannot read"),
        ("ops.crop(4)", "cannot read"),
        ("crop(4", "cannot read"),
        ("crop(4); flip", "cannot read"),
        ("3", "cannot read"),
        ("", "cannot read"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("augment.ops: ")
    assert "\n" not in str(caught.value)


def test_nothing_is_executed(tmp_path: Path) -> None:
    for text in (f"crop(open({str(tmp_path / 'made')!r}, 'w'))", f"open({str(tmp_path / 'made')!r}, 'w')"):
        with pytest.raises(UserError):
            parse(text)
    assert list(tmp_path.iterdir()) == []


@given(st.text(alphabet="flipcrout(),.-+*='\"[]{}:0123456789 \\\n", max_size=16))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        name, arguments = parse(text)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)
    else:
        assert name in OPERATIONS
        assert set(arguments) <= {"p", "padding", "mode", "size"}


# --- the table ---------------------------------------------------------------------------------------------


def test_a_crop_must_fit_the_image() -> None:
    assert check(Augment(ops=("crop(7)", "flip")), (3, 8, 9)) == [("crop", {"padding": 7}), ("flip", {})]
    for shape in ((3, 8, 9), (3, 9, 8)):
        with pytest.raises(UserError, match=r"crop\(8\) is too much for images of \d+x\d+"):
            check(Augment(ops=("crop(8)",)), shape)


def test_mean_and_std_go_together_one_a_channel() -> None:
    good = Augment(mean=(0.5,) * 3, std=(0.2,) * 3)
    assert check(good, (3, 8, 8)) == []
    with pytest.raises(UserError, match=r"augment\.mean has 3 numbers, the images have 1 channels"):
        check(good, (1, 8, 8))
    for wrong in ({"mean": (0.5,)}, {"std": (0.5,)}, {"mean": (0.5,) * 3, "std": (0.2,)}):
        with pytest.raises(UserError, match="set both or neither"):
            config.build(wrong, Augment, "augment")
    with pytest.raises(UserError, match="> 0"):
        config.build({"mean": (0.5,), "std": (0.0,)}, Augment, "augment")


# --- the draws ---------------------------------------------------------------------------------------------


@given(cuts=st.lists(st.integers(0, 24), max_size=4), step=st.integers(0, 10**6))
def test_a_picture_hangs_on_its_slot_whatever_the_cut(cuts: list[int], step: int) -> None:
    ours, images, slots = pipeline(*ALL), pictures(24), torch.arange(24)
    whole = ours.augment(images, step, slots)
    edges = [0, *sorted(cuts), 24]
    parts = [ours.augment(images[a:b], step, slots[a:b]) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole)
    shuffled = seeding.permutation(step, 24)
    assert torch.equal(ours.augment(images[shuffled], step, shuffled), whole[shuffled])


@pytest.mark.parametrize("operation", ["crop(2)", "flip", "cutout(3)"])
def test_steps_seeds_and_slots_differ(operation: str) -> None:
    images, slots = pictures(1).repeat(64, 1, 1, 1), torch.arange(64)
    first = pipeline(operation).augment(images, 0, slots)
    others = [
        pipeline(operation).augment(images, 1, slots),
        pipeline(operation, seed=1).augment(images, 0, slots),
        pipeline(operation).augment(images, 0, slots + 64),
        pipeline("crop(3)" if operation == "flip" else "flip", operation).augment(images, 0, slots),
    ]
    for other in others:
        assert not torch.equal(first, other)
    assert torch.equal(first, pipeline(operation).augment(images, 0, slots))


def test_the_same_operation_twice_draws_twice() -> None:
    images, slots = pictures(400), torch.arange(400)
    twice = pipeline("flip", "flip").augment(images, 0, slots)
    changed = (twice != images).flatten(1).any(1)
    assert 0.4 < changed.float().mean() < 0.6  # one draw for both would change none


@pytest.mark.parametrize(("operation", "p"), [("flip", 0.5), ("flip(0.1)", 0.1), ("flip(1)", 1.0), ("flip(0)", 0.0)])
def test_flips_as_often_as_told(operation: str, p: float) -> None:
    count = 10_000
    images = pictures(1).repeat(count, 1, 1, 1)
    flipped = (pipeline(operation).augment(images, 5, torch.arange(count)) != images).flatten(1).any(1)
    assert abs(flipped.float().mean() - p) <= 4 * math.sqrt(p * (1 - p) / count)


def test_every_crop_offset_is_as_likely() -> None:
    count, padding = 10_000, 2
    grid = torch.stack([torch.arange(8).view(8, 1).expand(8, 8), torch.arange(8).expand(8, 8)]).to(torch.uint8)
    seen = pipeline(f"crop({padding})", shape=(2, 8, 8)).augment(grid.repeat(count, 1, 1, 1), 0, torch.arange(count))
    down, right = seen[:, :, 4, 4].long().T - 4  # the centre pixel tells how far the window moved
    counts = torch.bincount((down + padding) * 5 + right + padding, minlength=25)
    assert len(counts) == 25
    chi_square = ((counts - count / 25) ** 2 / (count / 25)).sum()
    assert 9 < chi_square < 46  # 24 degrees of freedom: 0.5 % on either side
    pairs = zip(down.tolist(), right.tolist(), strict=True)
    for place, (d, r) in enumerate(list(pairs)[:50]):
        moved = ops.crop(grid[None], torch.tensor([d]), torch.tensor([r]))[0]
        assert torch.equal(seen[place], moved)


def test_cutout_centres_cover_the_image_and_fill_with_the_mean() -> None:
    count = 6_400
    holes = pipeline("cutout(1)").augment(torch.zeros(count, 3, 8, 8, dtype=torch.uint8), 0, torch.arange(count))
    assert torch.equal(holes.flatten(2).amax(2).unique(dim=0), torch.tensor([[128, 64, 191]], dtype=torch.uint8))
    hits = (holes[:, 0] > 0).sum(0)
    assert hits.sum() == count
    assert 60 < hits.min() < hits.max() < 145  # 100 each, four sigma


def test_cutout_is_centred() -> None:
    hole = pipeline("cutout(4)").augment(torch.zeros(500, 3, 8, 8, dtype=torch.uint8), 0, torch.arange(500))[:, 0] > 0
    sides = hole.flatten(1).sum(1)
    assert sides.max() == 16
    assert sides.min() == 4  # centred on a corner: a quarter of the square is inside


def test_no_operations_and_evaluation_leave_pixels_alone() -> None:
    images = pictures(4)
    assert torch.equal(pipeline().augment(images, 0, torch.arange(4)), images)
    ours = pipeline(*ALL)
    expected = ops.normalise(images, torch.tensor((0.5, 0.25, 0.75)), torch.full((3,), 0.25))
    assert torch.equal(ours.normalise(images), expected)
