"""The flights of the example as events: plausible times, and labels only after the landing."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "flights"


@pytest.fixture(scope="module")
def flights() -> pl.DataFrame:
    sys.path.insert(0, str(EXAMPLE))
    try:
        import data

        return data.flights(10)
    finally:
        sys.path.remove(str(EXAMPLE))


def test_a_tenth_of_the_year_is_a_fixed_sample_without_duplicates(flights: pl.DataFrame) -> None:
    assert 33_000 < flights.height < 34_500
    assert flights["flight_id"].n_unique() == flights.height


def test_predictions_precede_departures_and_landings_follow_them(flights: pl.DataFrame) -> None:
    landed = flights.filter(pl.col("landed_at").is_not_null())
    minutes = (landed["landed_at"] - landed["departed_at"]).dt.total_minutes()
    assert minutes.min() > 20
    assert minutes.max() < 780
    assert (flights["prediction_time"] <= flights["scheduled_at"]).all()


def test_only_flights_that_landed_have_a_label(flights: pl.DataFrame) -> None:
    assert (
        flights.filter(pl.col("landed_at").is_null())["late"].null_count()
        == flights["landed_at"].null_count()
    )
    assert flights.filter(pl.col("landed_at").is_not_null())["late"].null_count() == 0


def test_flights_are_sorted_by_prediction_time(flights: pl.DataFrame) -> None:
    assert flights["prediction_time"].is_sorted()
