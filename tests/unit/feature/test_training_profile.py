"""Column profiles and content hashes of training sets."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_feature.definitions.model import DataType
from flywheel_feature.offline.profile import profile_column
from flywheel_feature.tables.content_hash import content_hash

numbers = st.lists(
    st.one_of(
        st.none(), st.floats(allow_nan=True, allow_infinity=True, width=32), st.integers(-3, 3).map(float)
    ),
    max_size=600,
)


@settings(max_examples=200, deadline=None)
@given(values=numbers)
def test_bins_are_right_closed_and_hold_every_number(values: list[float | None]) -> None:
    profile = profile_column(pl.Series("x", values, dtype=pl.Float64), DataType.FLOAT64)
    present = [v for v in values if v is not None and v == v]
    edges = list(profile.edges)
    assert len(edges) <= 127
    assert edges == sorted(set(edges))
    assert len(profile.bin_counts) == len(edges) + 1
    bounds = [float("-inf"), *edges, float("inf")]
    expected = [
        sum(low < v <= high or (v == low == float("-inf")) for v in present) for low, high in pairwise(bounds)
    ]
    assert expected == list(profile.bin_counts)
    assert len(values) - len(present) == profile.null_count


def test_quantiles_cut_into_nearly_equal_bins() -> None:
    profile = profile_column(pl.Series("x", range(12_800), dtype=pl.Int64), DataType.INT64)
    assert (100,) * 128 == profile.bin_counts
    assert (99.0, 199.0) == profile.edges[:2]
    assert (0.0, 12_799.0, 6399.5) == (profile.min, profile.max, profile.mean)


def test_few_values_get_a_bin_each() -> None:
    profile = profile_column(pl.Series("x", [0, 1, 1, None, 5], dtype=pl.Int64), DataType.INT64)
    assert ((0.0, 1.0), (1, 2, 1), 1) == (profile.edges, profile.bin_counts, profile.null_count)


def test_the_hundred_most_frequent_categories_are_kept() -> None:
    values = [f"c{i:03d}" for i in range(150) for _ in range(2 if i == 149 else 1)] + [None]
    profile = profile_column(pl.Series("x", values), DataType.STRING)
    assert ("c149", "c000", "c001") == profile.categories[:3]
    assert (100, 2, 50, 1) == (
        len(profile.categories),
        profile.category_counts[0],
        profile.other_count,
        profile.null_count,
    )
    assert ("true", "false") == profile_column(pl.Series("x", [True, False, True]), DataType.BOOL).categories


BASE: dict[str, list[Any]] = {
    "text": ["ab", "c", None],
    "number": [1.5, float("nan"), None],
    "when": [datetime(2013, 1, 1, tzinfo=UTC), None, datetime(2014, 1, 1, tzinfo=UTC)],
    "flag": [True, None, False],
    "list": [[1.0, 2.0], [], None],
}


def frame(**change: list[Any]) -> pl.DataFrame:
    return pl.DataFrame({**BASE, **change}, schema_overrides={"when": pl.Datetime("us", "UTC")}, strict=False)


def test_content_hash_does_not_depend_on_chunks() -> None:
    whole = frame()
    pieces = pl.concat([whole.slice(0, 1), whole.slice(1, 2)], rechunk=False)
    assert content_hash(whole) == content_hash(pieces)


@pytest.mark.parametrize(
    "change",
    [
        {"text": ["a", "bc", None]},
        {"text": ["ab", "c", ""]},
        {"number": [1.5, None, None]},
        {"number": [1.5, float("nan"), 0.0]},
        {"flag": [True, False, False]},
        {"list": [[1.0], [2.0], None]},
        {"list": [[1.0, 2.0], None, []]},
    ],
)
def test_content_hash_differs_for_every_change(change: dict[str, list[Any]]) -> None:
    assert content_hash(frame()) != content_hash(frame(**change))
    assert content_hash(frame()) != content_hash(frame()[::-1])
    assert content_hash(frame()) != content_hash(frame().rename({"flag": "flog"}))
