"""Thresholds of segments: a release accepts those that can apply to a prediction, and no others."""

from __future__ import annotations

import pytest

from flywheel_common.signature import Signature
from flywheel_registry.releases.declaration import check_release
from flywheel_registry.releases.errors import InvalidThreshold
from flywheel_registry.releases.release import Release


def check(keys: tuple[str, ...], segment: str) -> None:
    release = Release(
        model="projects/p/models/m",
        version=1,
        threshold=0.5,
        segment_keys=keys,
        segment_thresholds={segment: 0.25},
    )
    check_release(release, Signature(()))


@pytest.mark.parametrize(
    ("keys", "segment"),
    [
        (("origin",), "origin=JFK"),
        (("origin",), "origin="),
        (("origin", "carrier"), "carrier=UA"),
        (("origin", "carrier"), "origin=JFK,carrier=UA"),
        (("origin", "carrier"), "origin=,carrier="),
        (("origin", "carrier"), "origin=New York, NY,carrier=U,A"),
        (("origin",), "origin=x=y"),
    ],
)
def test_a_segment_of_one_key_or_of_all_of_them_in_their_order_is_accepted(
    keys: tuple[str, ...], segment: str
) -> None:
    check(keys, segment)


@pytest.mark.parametrize(
    ("keys", "segment"),
    [
        ((), "origin=JFK"),
        (("origin",), "JFK"),
        (("origin",), "orgin=JFK"),
        (("origin",), "origin=JFK,carrier=UA"),
        (("origin", "carrier"), "carrier=UA,origin=JFK"),
        (("origin", "carrier"), "origin=JFK,carier=UA"),
        (("origin", "carrier", "dest"), "origin=JFK,carrier=UA"),
        (("origin", "carrier"), "origin=JFK,origin=LGA"),
    ],
)
def test_a_segment_that_no_prediction_can_have_is_refused(keys: tuple[str, ...], segment: str) -> None:
    with pytest.raises(InvalidThreshold):
        check(keys, segment)
