"""Definitions and rows of the benchmarks: drivers with fifty float features.

`fifty_set` reads them from one view, `mixed_set` from three stored views and an on-demand view.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

import flywheel as fw
from flywheel_local.services import BUCKET

FEATURES = 50
NAMES = [f"f{i}" for i in range(FEATURES)]
SPLIT = 20
NOW = datetime.now(UTC).replace(microsecond=0)
TTL = "90d"
WINDOWS = ("1h", "24h")
WIDE_URI = f"s3://{BUCKET}/tables/wide/"
EVENT_SCHEMA = {"driver": fw.STRING, "at": fw.TIMESTAMP, "fare": fw.FLOAT64, "distance": fw.FLOAT64}

driver = fw.Entity("driver", {"driver": fw.STRING})
wide = fw.ParquetSource(
    "wide",
    {"driver": fw.STRING, "at": fw.TIMESTAMP, **dict.fromkeys(NAMES, fw.FLOAT64)},
    timestamp="at",
    uri=WIDE_URI,
)
rides = fw.StreamSource("rides", EVENT_SCHEMA, timestamp="at")
fifty = fw.BatchView("fifty", driver, wide, dict.fromkeys(NAMES, fw.FLOAT64), ttl=TTL)
first = fw.BatchView("first", driver, wide, dict.fromkeys(NAMES[:SPLIT], fw.FLOAT64), ttl=TTL)
second = fw.BatchView("second", driver, wide, dict.fromkeys(NAMES[SPLIT : 2 * SPLIT], fw.FLOAT64), ttl=TTL)
recent = fw.StreamView(
    "recent",
    driver,
    rides,
    [
        *(
            f(field, w, name=f"{f.__name__}_{field}_{w}")
            for w in WINDOWS
            for field in ("fare", "distance")
            for f in (fw.mean, fw.maximum)
        ),
        *(fw.count(w, name=f"count_{w}") for w in WINDOWS),
    ],
    tile="5m",
)
asked = fw.RequestSource("asked", {"price": fw.FLOAT64})
computed = fw.OnDemandView(
    "computed",
    {"off": "price - recent__mean_fare_24h", "share": "first__f0 / (second__f20 + 2.0)"},
    views=[first, second, recent],
    requests=[asked],
)
fifty_set = fw.FeatureSet("fifty_set", [f"fifty:{n}" for n in NAMES])
mixed_set = fw.FeatureSet(
    "mixed_set",
    [
        *(f"first:{n}" for n in NAMES[:SPLIT]),
        *(f"second:{n}" for n in NAMES[SPLIT : 2 * SPLIT - 2]),
        *(f"recent:{a.name}" for a in recent.aggregations),
        "computed:off",
        "computed:share",
    ],
)


def definitions():  # type: ignore[no-untyped-def]
    return fw.compile_definitions([fifty, first, second, recent, computed, fifty_set, mixed_set], "default")


def drivers(count: int) -> list[str]:
    return [f"driver-{i:08d}" for i in range(count)]


def wide_rows(rows: int) -> pl.DataFrame:
    """One row per driver, with an event time of one hour ago."""
    values = np.random.default_rng(7).random((FEATURES, rows))
    return pl.DataFrame(
        {
            "driver": drivers(rows),
            "at": [NOW - timedelta(hours=1)] * rows,
            **{name: values[i] for i, name in enumerate(NAMES)},
        }
    )


def ride_rows(
    seed: int, events: int, entities: int, start: datetime, step: timedelta
) -> dict[str, list[Any]]:
    """One event every `step` from `start`, each of a random driver."""
    generator = np.random.default_rng(seed)
    return {
        "driver": [f"driver-{i:08d}" for i in generator.integers(0, entities, events).tolist()],
        "at": [start + i * step for i in range(events)],
        "fare": (generator.random(events) * 40).round(2).tolist(),
        "distance": (generator.random(events) * 20).round(2).tolist(),
    }
