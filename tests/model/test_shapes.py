from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from weightclass.errors import UserError
from weightclass.model.budget import SUMMED, Budget, weigh
from weightclass.model.networks import build
from weightclass.model.resnet import ResNetConfig
from weightclass.model.shapes import CLOSE, counts, fill

CIFAR = (3, 32, 32)


@st.composite
def networks(draw):
    """Any residual network, under every key that changes what it weighs."""
    layers, odd, channels = draw(st.integers(1, 3)), st.sampled_from((1, 3, 5)), st.integers(1, 12)
    several = st.one_of(odd, st.tuples(*[odd] * layers))
    return ResNetConfig(
        blocks=draw(st.tuples(*[st.integers(1, 2)] * layers)),
        channels=draw(st.tuples(*[channels] * layers)),
        stem_channels=draw(st.one_of(st.just(0), channels)),
        kernels=draw(several),
        skip_kernels=draw(several),
        stem_kernel=draw(odd),
        downsample=draw(st.sampled_from(("stride", "avgpool", "maxpool"))),
        pool=draw(st.sampled_from(("avg(1)", "max(2)", "global"))),
        norm=draw(st.sampled_from(("batch", "none"))),
        preactivation=draw(st.sampled_from((False, True, "blocks"))),
        se=draw(st.sampled_from(("none", "stem", "blocks"))),
        se_reduction=draw(st.sampled_from((1, 3, 16))),
    )


images = st.tuples(st.integers(1, 4), st.integers(8, 20), st.integers(8, 20))
limits = st.one_of(
    st.builds(Budget, params=st.integers(500, 3_000_000)),
    st.builds(Budget, macs=st.integers(100_000, 100_000_000)),
    st.builds(Budget, params=st.integers(500, 3_000_000), macs=st.integers(100_000, 100_000_000)),
    st.builds(Budget, bytes_int8=st.integers(1000, 1_000_000), bytes_fp32=st.integers(4000, 2_000_000)),
)


def used(config, limits, image_shape, classes):
    """The share of the limit that binds."""
    found = counts(config, image_shape, classes)
    return max(getattr(found, key) / bound for key in SUMMED if (bound := limits.limit(key)))


@settings(max_examples=30)
@given(networks(), images, st.integers(2, 11))
def test_counts_are_those_of_weighing(config, image_shape, classes):
    weights = weigh(build(config, image_shape, classes), image_shape)
    assert counts(config, image_shape, classes)._asdict() == {key: getattr(weights, key) for key in SUMMED}


def test_counts_of_the_papers_networks():
    paper = ResNetConfig(blocks=(3, 3, 3, 3), channels=(128, 100, 164, 200))
    assert counts(paper, CIFAR, 10).params == 4_978_810
    assert counts(ResNetConfig(), CIFAR, 10).params == 701_466


def test_a_shape_that_cannot_work():
    with pytest.raises(UserError, match="8x8 images are too small for 5 layers: layer 5 would halve a map of 1x1"):
        counts(ResNetConfig(blocks=(1,) * 5, channels=(4,) * 5), (3, 8, 8), 10)
    with pytest.raises(UserError, match=r"pool = avg\(4\) is larger than the last map, 1x1"):
        fill(ResNetConfig(), Budget(params="1M"), (3, 8, 8), 10)


@settings(max_examples=100)
@given(networks(), limits, images, st.integers(2, 11))
def test_a_filled_network_fits_and_has_no_room_left(config, limits, image_shape, classes):
    full, ones = fill(config, limits, image_shape, classes), (1,) * len(config.channels)
    if full is None:
        least = structs.replace(config, channels=ones, stem_channels=min(config.stem_channels, 1))
        assert used(least, limits, image_shape, classes) >= 1
        return
    wider = [(*full.channels[:i], width + 1, *full.channels[i + 1 :]) for i, width in enumerate(full.channels)]
    more = [used(structs.replace(full, channels=each), limits, image_shape, classes) for each in wider]
    assert used(full, limits, image_shape, classes) < 1
    assert used(full, limits, image_shape, classes) >= CLOSE or min(more) >= 1
    assert structs.replace(full, channels=ones, stem_channels=0) == structs.replace(
        config, channels=ones, stem_channels=0
    )


@pytest.mark.parametrize("budget", ["5M", "1M", "701467", "300k"])
@pytest.mark.parametrize("channels", [(16, 32, 64, 128), (128, 100, 164, 200), (1, 1, 1, 1)])
def test_proportions_are_kept(budget, channels):
    full = fill(ResNetConfig(channels=channels), Budget(params=budget), CIFAR, 10)
    ratios = [width / share for width, share in zip(full.channels, channels, strict=True)]
    assert max(ratios) / min(ratios) < 1.4  # a cheap layer takes what is left over
    assert used(full, Budget(params=budget), CIFAR, 10) >= CLOSE


@pytest.mark.parametrize(("multiple", "channels"), [(4, (44, 88, 172, 340)), (1, (44, 86, 171, 342))])
def test_channels_are_round_where_that_is_close_enough(multiple, channels):
    assert fill(ResNetConfig(), Budget(params="5M"), CIFAR, 10, multiple).channels == channels


def test_the_papers_small_network_fills_its_own_budget():
    full = fill(ResNetConfig(channels=(1, 2, 4, 8)), Budget(params=701_467), CIFAR, 10)
    assert full == ResNetConfig()


def test_activations_are_checked_and_no_limit_changes_nothing():
    config = ResNetConfig(channels=(4, 4, 4, 4))
    live = weigh(build(config, CIFAR, 10), CIFAR).activations
    assert fill(config, Budget(), CIFAR, 10) == fill(config, Budget(activations=live + 1), CIFAR, 10) == config
    assert fill(config, Budget(activations=live), CIFAR, 10) is None
