from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from weightclass.model.budget import grouped, weigh
from weightclass.model.draw import _boxes, draw
from weightclass.model.resnet import ResNetConfig, build


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (ResNetConfig(blocks=(3, 3, 3, 3), channels=(128, 100, 164, 200)), (3, 32, 32)),
        (ResNetConfig(blocks=(1,), channels=(8,), pool="global", norm="none"), (1, 5, 7)),
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
