"""APPROX_DISTINCT: estimates against true counts, and online against offline values."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_feature.definitions.model import Aggregation, AggregationFunction, DataType
from flywheel_feature.offline.joins.windows import WindowFeature, windowed_features
from flywheel_feature.windows.hyperloglog import REGISTERS, STANDARD_ERROR, counts, observations
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_reading import TileReader
from flywheel_feature.windows.tile_writing import Events, partials, state_of
from tests.support.builders.feature_units import MINUTE, at, microseconds

TILE = 5 * MINUTE
DISTINCT = AggregationFunction.APPROX_DISTINCT


@pytest.mark.parametrize("true", [50, 500, 5_000, 50_000])
def test_the_error_over_many_samples_is_the_standard_error(true: int) -> None:
    samples = 60
    owner = np.repeat(np.arange(samples), true)
    estimates = counts(owner, observations(np.arange(samples * true, dtype=np.int64)), samples)
    errors = estimates / true - 1.0
    assert abs(errors.mean()) < 3 * STANDARD_ERROR / np.sqrt(samples)
    # The sample deviation of 60 errors is more than 30 % off the true one in 1 of 1,000 samples.
    assert errors.std() < 1.3 * STANDARD_ERROR


def test_the_standard_error_is_that_of_2048_registers() -> None:
    assert REGISTERS == 2048
    assert pytest.approx(0.02298, abs=1e-5) == STANDARD_ERROR


@pytest.mark.parametrize(
    "values",
    [
        np.array([True, False]),
        np.array([1, 2, -(2**62), 2**62 + 1, 2**62 + 2], np.int64),
        np.array([0.5, 0.25, 1e300], np.float64),
        np.array([0.5, 0.25], np.float32),
        np.array(["", "a", "ä", "aa"], object),
        np.array([b"", b"a", b"\0", b"\0\0"], object),
    ],
)
def test_few_values_of_every_scalar_type_are_counted_exactly(values: Any) -> None:
    repeated = np.concatenate([values, values, values])
    assert counts(np.zeros(repeated.size, np.int64), observations(repeated), 2).tolist() == [values.size, 0]


def test_equal_numbers_of_any_width_are_one_value() -> None:
    assert observations(np.array([0.5], np.float32)) == observations(np.array([0.5]))
    assert observations(np.array([0.0])) == observations(np.array([-0.0]))


EVENTS = st.lists(
    st.tuples(st.sampled_from("AB"), st.integers(0, 90), st.one_of(st.none(), st.sampled_from("uvwxyzäöü"))),
    max_size=40,
)


@settings(max_examples=80, deadline=None)
@given(EVENTS, st.integers(0, 100))
def test_online_and_offline_counts_of_texts_are_equal(events: list[Any], minute: int) -> None:
    aggregations = [Aggregation(f"d{w}", DISTINCT, "v", w * MINUTE) for w in (15, 60)]
    layout = TileLayout(aggregations, TILE)
    seen = [e for e in events if e[1] <= minute]
    texts = np.array([*(e[2] or "" for e in seen), None], object)[:-1]
    present = np.array([e[2] is not None for e in seen], bool)
    time = microseconds([e[1] for e in seen])
    batch = Events(
        np.array(["AB".index(e[0]) for e in seen], np.int64),
        time,
        time,
        np.arange(len(seen)),
        {"v": (np.zeros(len(seen)), present)},
        {"v": observations(texts)},
    )
    deltas = partials(layout, batch)
    states = [state_of(layout, deltas[i], {0: 1}) if i in deltas else None for i in range(2)]
    online = TileReader(layout).read(states, microseconds([minute] * 2))
    offline = windowed_features(
        pl.DataFrame({"k": ["A", "B"], "at": [at(minute)] * 2}),
        pl.DataFrame(
            {
                "k": [e[0] for e in events],
                "t": [at(e[1]) for e in events],
                "v": [e[2] for e in events],
                "id": [str(i) for i in range(len(events))],
            },
            schema={"k": pl.String, "t": pl.Datetime("us", "UTC"), "v": pl.String, "id": pl.String},
        ),
        keys=["k"],
        spine_time="at",
        event_time="t",
        event_id="id",
        tile=TILE,
        features=[WindowFeature(a.name, a.function, a.field, a.window, DataType.INT64) for a in aggregations],
    )
    for aggregation, (values, valid) in zip(aggregations, online.columns, strict=True):
        answered = [v if ok else None for v, ok in zip(values.tolist(), valid.tolist(), strict=True)]
        assert answered == offline[aggregation.name].to_list()
        for row, key in enumerate("AB"):
            tiles = range((minute - aggregation.window // MINUTE) // 5 + 1, minute // 5 + 1)
            true = {e[2] for e in seen if e[0] == key and e[1] // 5 in tiles and e[2] is not None}
            assert (answered[row] or 0) == len(true)
