from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from weightclass.model.budget import grouped, weigh
from weightclass.model.draw import _boxes, draw
from weightclass.model.mobilenet import MobileNetV2Config
from weightclass.model.networks import build
from weightclass.model.resnet import ResNetConfig


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (ResNetConfig(blocks=(3, 3, 3, 3), channels=(128, 100, 164, 200)), (3, 32, 32)),
        (ResNetConfig(blocks=(1,), channels=(8,), pool="global", norm="none"), (1, 5, 7)),
        (MobileNetV2Config(), (3, 32, 32)),
    ],
)
def test_draws_a_picture(tmp_path, settings, shape):
    path = tmp_path / "network.png"
    draw(weigh(build(settings, shape, 10), shape), path, "costs $5 or $6")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= 1100
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 100  # boxes of many shades


def test_boxes_stand_apart_and_shrink_with_the_map():
    boxes = _boxes(grouped(weigh(build(ResNetConfig(), (3, 32, 32), 10), (3, 32, 32))))
    assert all(a.right + a.depth < b.left for a, b in itertools.pairwise(boxes))
    heights = [box.height for box in boxes]
    assert heights == sorted(heights, reverse=True)
    assert heights[0] == 1
    assert boxes[-2].right - boxes[-2].left > boxes[0].right - boxes[0].left


def test_a_long_title_fits(tmp_path):
    path, settings = tmp_path / "network.png", ResNetConfig(blocks=(1,), channels=(8,), pool="global")
    title = "small-cpu model.blocks=2,2,2 model.channels=64,128,256 model.stem_channels=16 model.preactivation=true"
    draw(weigh(build(settings, (1, 8, 8), 10), (1, 8, 8)), path, title)
    with Image.open(path) as image:
        heading = np.asarray(image.convert("L"))[:60]
    assert (heading < 128).any()
    assert (heading[:, -10:] == 255).all()


def test_narrow_boxes_leave_room_for_what_is_written_above():
    boxes = _boxes(grouped(weigh(build(MobileNetV2Config(), (3, 32, 32), 10), (3, 32, 32))))
    assert all(b.left - a.left >= 0.5 - 1e-9 for a, b in itertools.pairwise(boxes))
