"""Column profiles and content hashes of training sets."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
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


def test_vectors_are_profiled_by_their_projections() -> None:
    rows = np.random.default_rng(3).normal(size=(4000, 5)).astype(np.float32)
    rows[10, 2] = np.inf
    values = pl.Series("v__e", rows, dtype=pl.Array(pl.Float32, 5))
    values = pl.concat([values, pl.Series("v__e", [None] * 7, dtype=pl.Array(pl.Float32, 5))])
    profile = profile_column(values, DataType.FLOAT32_VECTOR)
    assert (4007, 8, 5, 8) == (
        profile.count,
        profile.null_count,
        profile.vector_size,
        len(profile.projections),
    )
    seed = int.from_bytes(hashlib.sha256(b"v__e").digest()[:8], "little")
    normal = np.random.default_rng(np.random.PCG64(seed)).standard_normal((8, 5))
    finite = np.delete(rows, 10, axis=0).astype(np.float64)
    for one, direction in zip(profile.projections, normal, strict=True):
        expected = finite @ (direction / np.sqrt(np.sum(direction**2)))
        assert (4007, 8, 3999) == (one.count, one.null_count, sum(one.bin_counts))
        moments = [expected.mean(), expected.std(), expected.min(), expected.max()]
        np.testing.assert_allclose([one.mean, one.stddev, one.min, one.max], moments, rtol=1e-5, atol=1e-6)
        middle = np.sort(expected)[np.ceil(3999 * np.arange(1, 128) / 128).astype(int) - 1]
        np.testing.assert_allclose(one.edges, middle, rtol=1e-5, atol=1e-6)


def test_vectors_stored_as_lists_have_the_same_profile() -> None:
    rows = np.random.default_rng(3).normal(size=(300, 5)).astype(np.float32)
    found = [
        profile_column(pl.Series("v__e", [*rows.tolist(), None], dtype=kind), DataType.FLOAT32_VECTOR)
        for kind in (pl.Array(pl.Float32, 5), pl.List(pl.Float32))
    ]
    assert found[0] == found[1]
    assert 8 == len(found[0].projections)


@pytest.mark.parametrize("kind", [pl.Array(pl.Float32, 5), pl.List(pl.Float32), pl.Null])
def test_a_vector_column_without_values_is_only_counted(kind: Any) -> None:
    profile = profile_column(pl.Series("v__e", [None, None], dtype=kind), DataType.FLOAT32_VECTOR)
    assert (2, 2, 0, ()) == (profile.count, profile.null_count, profile.vector_size, profile.projections)
