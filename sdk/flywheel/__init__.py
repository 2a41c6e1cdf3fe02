"""Flywheel for Python: declare features, train, release and call models.

import flywheel as fw
"""

from flywheel.client import Client, now, timestamp
from flywheel.definitions import (
    Aggregation,
    BatchView,
    Entity,
    FeatureSet,
    OnDemandView,
    ParquetSource,
    RequestSource,
    StreamSource,
    StreamView,
    approx_distinct,
    compile_definitions,
    count,
    first,
    last,
    last_n,
    load_module,
    maximum,
    mean,
    minimum,
    std,
    total,
)
from flywheel.errors import FlywheelError, JobFailedError, NotFound, Unavailable
from flywheel.types import BOOL, BYTES, FLOAT32, FLOAT64, INT64, STRING, TIMESTAMP

__all__ = [
    "BOOL",
    "BYTES",
    "FLOAT32",
    "FLOAT64",
    "INT64",
    "STRING",
    "TIMESTAMP",
    "Aggregation",
    "BatchView",
    "Client",
    "Entity",
    "FeatureSet",
    "FlywheelError",
    "JobFailedError",
    "NotFound",
    "OnDemandView",
    "ParquetSource",
    "RequestSource",
    "StreamSource",
    "StreamView",
    "Unavailable",
    "approx_distinct",
    "compile_definitions",
    "count",
    "first",
    "last",
    "last_n",
    "load_module",
    "maximum",
    "mean",
    "minimum",
    "now",
    "std",
    "timestamp",
    "total",
]  # fmt: skip
