"""The published tables and ranges, against those that the plain twin spells out."""

from __future__ import annotations

import pytest

from tests.reference import plain_policies
from weightclass.augment import policies


@pytest.mark.parametrize("policy", ["cifar10", "svhn", "imagenet"])
def test_sub_policies_are_the_published_ones(policy: str) -> None:
    ours = policies.AUTOAUGMENT[policy]
    assert ours == [list(sub) for sub in plain_policies.AUTOAUGMENT[policy]]
    assert len(ours) == 25


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (48, 96)])
@pytest.mark.parametrize("bins", [2, 10, 31])
def test_strengths_are_torchvisions(bins: int, size: tuple[int, int]) -> None:
    families = {
        "autoaugment": policies.auto_strengths(bins, *size) | {"Invert": ([0.0], False)},
        "randaugment": policies.rand_strengths(bins, *size),
        "trivialaugment": policies.wide_strengths(bins),
    }
    for family, ours in families.items():
        assert ours == plain_policies.magnitudes(family, bins, *size)
    assert policies.mix_strengths(*size) == plain_policies.magnitudes("augmix", 10, *size)
