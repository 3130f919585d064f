from __future__ import annotations

import pytest
from msgspec import structs

from weightclass.errors import UserError
from weightclass.model.budget import Budget, weigh
from weightclass.model.design import candidates, design, ladder, pick, score
from weightclass.model.networks import build
from weightclass.model.resnet import ResNetConfig, map_sizes
from weightclass.model.shapes import Counts, counts, fill

CIFAR = (3, 32, 32)
WIDE = {(40, 1): 6.85, (40, 2): 5.33, (40, 4): 4.97, (40, 8): 4.66, (28, 10): 4.17}
WIDE |= {(28, 12): 4.33, (22, 8): 4.38, (22, 10): 4.44, (16, 8): 4.81, (16, 10): 4.56}
"""Test errors in % of the Wide ResNets of Zagoruyko and Komodakis 2016 (Table 4) on CIFAR-10, by depth and width."""


@pytest.fixture(scope="module")
def five():
    return candidates(Budget(params="5M"), CIFAR, 10)


def test_all_candidates_at_5m_come_within_half_a_percent_of_it(five):
    assert len(five) > 1000
    assert all(0.995 * 5e6 <= each.counts.params < 5e6 for each in five)
    assert len({each.config for each in five}) > 0.95 * len(five)


def test_the_list_is_a_ladder_of_macs(five):
    shown = ladder(five, 15)
    macs = [each.counts.macs for each in shown]
    assert 10 <= len(shown) <= 15
    assert macs == sorted(macs, reverse=True)
    assert macs[0] > 10 * macs[-1]
    assert shown[0].score == max(each.score for each in five)
    for each in shown:  # the plain twin: nothing that costs no more is better
        assert each.score == max(other.score for other in five if other.counts.macs <= each.counts.macs)
    assert shown == design("5M", CIFAR, 10)
    assert [each.config for each in ladder(five, 1)] == [shown[0].config]


def test_what_is_listed_weighs_what_it_says(five):
    for each in ladder(five, 4):
        weights = weigh(build(each.config, CIFAR, 10), CIFAR)
        assert each.counts == Counts(*(getattr(weights, key) for key in Counts._fields))


def test_other_limits_hold_and_the_rest_is_the_bases():
    base, limits = (
        ResNetConfig(se="blocks", stem_channels=24, activation="silu"),
        Budget(bytes_int8="300kB", macs="20M"),
    )
    for each in design(limits, CIFAR, 10, base=base):
        assert each.counts.bytes_int8 < 300_000
        assert each.counts.macs < 20_000_000
        free = {"blocks": base.blocks, "channels": base.channels, "pool": base.pool, "stem_channels": 24}
        assert structs.replace(each.config, **free) == base


@pytest.mark.parametrize(
    ("image_shape", "classes", "last"),
    [
        ((1, 8, 8), 10, 4),
        ((1, 28, 28), 10, 4),
        ((3, 12, 30), 2, 6),
        ((3, 2, 2), 3, 2),
        pytest.param(CIFAR, 100, 4, marks=pytest.mark.slow),
        pytest.param((3, 65, 65), 5, 5, marks=pytest.mark.slow),
        pytest.param((3, 224, 224), 1000, 4, marks=pytest.mark.slow),
        pytest.param((3, 512, 512), 5, 4, marks=pytest.mark.slow),
    ],
)
def test_one_is_picked_for_any_images(image_shape, classes, last):
    config = pick(Budget(params="1M"), image_shape, classes)
    assert 0.99e6 < counts(config, image_shape, classes).params < 1e6
    assert min(map_sizes(image_shape, len(config.blocks))[-1]) in (last, 2 * last, 2 * last - 1)
    assert config.pool == "global"


def test_what_is_picked_costs_no_more_than_the_papers_shape():
    limits = Budget(params="701467")
    assert fill(ResNetConfig(pool="global"), limits, CIFAR, 10) == ResNetConfig(pool="global")
    found, paper = pick(limits, CIFAR, 10), counts(ResNetConfig(), CIFAR, 10)
    assert counts(found, CIFAR, 10).macs <= paper.macs
    assert score(found, counts(found, CIFAR, 10)) >= score(ResNetConfig(), paper)


def test_the_criterion_ranks_published_networks():
    """Spearman's correlation with accuracy, of networks that one table's authors trained alike."""
    scores = {}
    for depth, width in WIDE:
        channels = tuple(width * each for each in (16, 32, 64))
        config = ResNetConfig(
            blocks=((depth - 4) // 6,) * 3, channels=channels, stem_channels=16, preactivation=True, pool="global"
        )
        scores[depth, width] = score(config, counts(config, CIFAR, 10))
    ranks = [sorted(scores, key=scores.get), sorted(WIDE, key=lambda each: -WIDE[each])]
    gaps = [(ranks[0].index(each) - ranks[1].index(each)) ** 2 for each in WIDE]
    assert round(1 - 6 * sum(gaps) / (10 * 99), 2) == 0.95


def test_nothing_fits():
    with pytest.raises(
        UserError, match=r"32x32 images and 10 classes is under params 100; the least has \d+ parameters"
    ):
        design("100", CIFAR, 10)
    with pytest.raises(UserError, match="no limit to fill"):
        design(Budget(activations="1M"), CIFAR, 10)
    with pytest.raises(UserError, match="one number each"):
        design("1M", CIFAR, 10, base=ResNetConfig(kernels=(3, 3, 5, 5)))
