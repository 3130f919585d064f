"""What a recipe's text means, which mistakes it refuses, and that a picture hangs on (seed, step, slot) alone."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.reference.pictures import natural
from weightclass import config, seeding
from weightclass.augment import ops
from weightclass.augment.pipeline import FUNCTIONS, Augment, Pipeline, check, parse
from weightclass.batching import Batch
from weightclass.errors import UserError

GEOMETRY = ("crop(2)", "flip", "crop(1, reflect)", "flip(0.3)", "altflip", "shear_x(0.3)", "shear_y(0.3, bilinear)")
GEOMETRY += ("translate_x(3)", "translate_y(3)", "rotate(30)", "rotate(30, bilinear, 0.5)", "perspective(0.6)")
COLOURS = ("brightness(0.5)", "contrast(0.5)", "saturation(0.5)", "sharpness(0.9)", "posterize(3)", "solarize(100)")
COLOURS += ("autocontrast", "equalize", "invert", "blur(1.5)", "noise(20)")
OTHERS = ("cutout(3)", "erase", "autoaugment", "autoaugment(svhn)", "autoaugment(imagenet)", "randaugment")
OTHERS += ("trivialaugment", "augmix", "augmix(depth=2, alpha=0.5)", "mixup(0.4)", "cutmix")
EVERY = GEOMETRY + COLOURS + OTHERS


def pipeline(*operations: str, seed: int = 0, shape: tuple[int, int, int] = (3, 8, 8)) -> Pipeline:
    parsed = check(Augment(ops=operations), shape)
    mean, std = (0.5, 0.25, 0.75, 0.5)[: shape[0]], (0.25,) * shape[0]
    return Pipeline(parsed, mean, std, seed, torch.device("cpu"), shape, 10)


def augmented(ours: Pipeline, images: Tensor, step: int, slots: Tensor, epoch: int = 0) -> Tensor:
    batch = Batch(images, slots % 10, slots, slots)
    return ours.augment(batch, epoch, step).images


def pictures(count: int) -> Tensor:
    bits = seeding.bits(seeding.key(0, "pictures"), torch.arange(count * 192))[0]
    return (bits & 255).to(torch.uint8).view(count, 3, 8, 8)


# --- text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("flip", "flip", {"p": 0.5}),
        (" flip() ", "flip", {"p": 0.5}),
        ("flip(0.25)", "flip", {"p": 0.25}),
        ("flip(p=1)", "flip", {"p": 1.0}),
        ("crop(4)", "crop", {"padding": 4, "mode": "zero"}),
        ("crop( 4 , reflect )", "crop", {"padding": 4, "mode": "reflect"}),
        ("crop(4, 'zero')", "crop", {"padding": 4, "mode": "zero"}),
        ("crop(mode=reflect, padding=2)", "crop", {"padding": 2, "mode": "reflect"}),
        ("cutout(8)", "cutout", {"size": 8}),
        ("autoaugment(svhn)", "autoaugment", {"policy": "svhn"}),
        ("randaugment(3, magnitude=5)", "randaugment", {"count": 3, "magnitude": 5, "bins": 31}),
        ("mixup(0.2)", "mixup", {"alpha": 0.2, "p": 1.0}),
    ],
)
def test_reads(text: str, name: str, arguments: dict[str, object]) -> None:
    assert parse(text) == (name, arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flipp", "unknown operation 'flipp': did you mean flip?"),
        ("mixture(2)", "unknown operation 'mixture': did you mean mixup?"),
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
        ("crop(" + "-" * 3000 + "1)", "cannot read"),
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
        assert name in FUNCTIONS
        assert all(isinstance(value, int | float | str) for value in arguments.values())


# --- the table ---------------------------------------------------------------------------------------------


def test_a_crop_must_fit_the_image() -> None:
    assert check(Augment(ops=("crop(7)", "flip")), (3, 8, 9)) == [
        ("crop", {"padding": 7, "mode": "zero"}),
        ("flip", {"p": 0.5}),
    ]
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


@settings(max_examples=8)
@given(cuts=st.sets(st.integers(1, 23), max_size=4), step=st.integers(0, 10**6))
def test_a_picture_hangs_on_its_slot_whatever_the_cut(cuts: set[int], step: int) -> None:
    ours, images, slots = pipeline(*EVERY[:-2]), pictures(24), torch.arange(24)
    whole = augmented(ours, images, step, slots)
    edges = [0, *sorted(cuts), 24]
    parts = [augmented(ours, images[a:b], step, slots[a:b]) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole)
    shuffled = seeding.permutation(step, 24)
    assert torch.equal(augmented(ours, images[shuffled], step, shuffled), whole[shuffled])


@pytest.mark.parametrize("operation", [name for name in EVERY if name not in ("altflip", "equalize")])
def test_steps_seeds_and_slots_differ(operation: str) -> None:
    images, slots = pictures(2).repeat(32, 1, 1, 1), torch.arange(64)
    first = augmented(pipeline(operation), images, 0, slots)
    others = [
        augmented(pipeline(operation), images, 1, slots),
        augmented(pipeline(operation, seed=1), images, 0, slots),
        augmented(pipeline(operation), images, 0, slots + 64),
        augmented(pipeline("crop(3)" if operation == "flip" else "flip", operation), images, 0, slots),
    ]
    for other in others:
        assert not torch.equal(first, other)
    assert torch.equal(first, augmented(pipeline(operation), images, 0, slots))


def test_the_same_operation_twice_draws_twice() -> None:
    images, slots = pictures(400), torch.arange(400)
    twice = augmented(pipeline("flip", "flip"), images, 0, slots)
    changed = (twice != images).flatten(1).any(1)
    assert 0.4 < changed.float().mean() < 0.6  # one draw for both would change none


def test_no_operations_and_evaluation_leave_pixels_alone() -> None:
    images = pictures(4)
    assert torch.equal(augmented(pipeline(), images, 0, torch.arange(4)), images)
    ours = pipeline(*EVERY)
    expected = ops.normalise(images, torch.tensor((0.5, 0.25, 0.75)), torch.full((3,), 0.25))
    assert torch.equal(ours.normalise(images), expected)


def test_labels_become_probabilities_only_where_they_are_mixed() -> None:
    images, labels, slots = pictures(24), torch.arange(24) % 10, torch.arange(24)
    batch = Batch(images, labels, slots, slots)
    assert torch.equal(pipeline("flip", "autoaugment").augment(batch, 0, 0).labels, labels)
    for mixing in ("mixup", "cutmix", "mixup(0.2)"):
        mixed = pipeline("flip", mixing).augment(batch, 0, 0).labels
        assert mixed.dtype == torch.float32
        assert torch.allclose(mixed.sum(1), torch.ones(24))
        own, other = mixed.gather(1, labels[:, None])[:, 0], mixed.gather(1, labels[slots ^ 1][:, None])[:, 0]
        assert torch.allclose(own + other, torch.ones(24))
        assert 0 <= own.min() < own.max() <= 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 1, 1), (3, 40, 25), (4, 16, 16)])
def test_any_size_and_channel_count_or_one_line(shape: tuple[int, int, int]) -> None:
    images, slots = seeding.bits(1, torch.arange(6 * math.prod(shape)))[0], torch.arange(6)
    images = (images & 255).to(torch.uint8).view(6, *shape)
    for operation in EVERY:
        try:
            ours = pipeline(operation, shape=shape)
        except UserError as error:
            assert "channels" in str(error) or "too much" in str(error)  # noqa: PT017 (either outcome is right)
            continue
        seen = augmented(ours, images, 0, slots)
        assert (seen.dtype, seen.shape) == (torch.uint8, images.shape)


def test_what_needs_colour_says_so_on_grey_images() -> None:
    for name in ("saturation(0.5)", "autoaugment", "randaugment", "trivialaugment", "augmix"):
        with pytest.raises(UserError, match=r"needs images of 3 channels, these have 1: leave it out"):
            check(Augment(ops=(name,)), (1, 8, 8))
    with pytest.raises(UserError, match="contrast needs images of 1 or 3 channels, these have 4"):
        check(Augment(ops=("contrast(0.5)",)), (4, 8, 8))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ("randaugment(2, 31)", "magnitude 31 must be below bins, 31"),
        ("randaugment(bins=1)", "Expected `int` >= 2"),
        ("erase(0.5, 0.4)", "least 0.4 must not be above most, 0.33"),
        ("translate_x(8)", "translate_x(8) is too much for images of 8x8"),
        ("autoaugment(cifar100)", "Invalid enum value 'cifar100'"),
        ("mixup(0)", "Expected `float` > 0"),
    ],
)
def test_strengths_must_make_sense(operation: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check(Augment(ops=(operation,)), (3, 8, 8))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "operation", [pytest.param(each, marks=pytest.mark.slow) if "augmix" in each else each for each in EVERY]
)
def test_the_same_under_compile_with_keys_as_tensors(operation: str) -> None:
    """No graph break: nothing asks the device for a value, and a new step is no new graph."""
    torch.compiler.reset()
    ours, images, slots = pipeline(operation), pictures(24), torch.arange(24)
    counted = torch.compile(ours.apply, backend="eager", fullgraph=True, dynamic=False)
    targets = torch.eye(10)[slots % 10]
    for step in (3, 4):
        key = seeding.key(0, f"augment/0/{operation.partition('(')[0]}", step)
        signed = torch.tensor(key - 2**64 if key >= 2**63 else key)
        seen, mixed = counted(images, targets, slots, slots, torch.tensor(1), [signed])
        with torch.compiler.set_stance("fail_on_recompile"):
            counted(images, targets, slots, slots, torch.tensor(1), [signed])
        expected = ours.apply(images, targets, slots, slots, 1, [key])
        assert torch.equal(seen, expected[0])
        assert torch.allclose(mixed, expected[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # inductor's own
def test_one_compiled_graph_serves_every_step() -> None:
    """As on CUDA, by inductor: the same labels, and pixels but for a level where it fuses multiply and add."""
    torch.compiler.reset()
    operations = check(Augment(ops=("autoaugment", "crop(4)", "flip", "perspective(0.6)", "mixup")), (3, 32, 32))
    numbers = operations, (0.5,) * 3, (0.25,) * 3, 0, torch.device("cpu"), (3, 32, 32), 10
    eager, compiled = Pipeline(*numbers), Pipeline(*numbers, compile=True)
    slots = torch.arange(64)
    batch = Batch(natural(64, 32, 32), slots % 10, slots, slots)
    for step in range(3):
        expected = eager.augment(batch, step, step)
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            seen = compiled.augment(batch, step, step)
        assert (seen.images.int() - expected.images.int()).abs().max() <= 1
        assert (seen.images != expected.images).float().mean() < 0.001
        assert torch.allclose(seen.labels, expected.labels)
