"""Flywheel for Python: declare features, train, release and call models.

import flywheel as fw
"""

from flywheel.client import Client, now, timestamp
from flywheel.definitions import (
    Aggregation,
    BatchView,
    DeltaSource,
    Entity,
    FeatureSet,
    OnDemandView,
    ParquetSource,
    RequestSource,
    StreamSource,
    StreamView,
    compile_definitions,
    count,
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
from flywheel.report import alerts_table, versions_table
from flywheel.types import BOOL, BYTES, FLOAT32, FLOAT64, INT64, STRING, TIMESTAMP
from flywheel.watching import ModelWatch, News

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
    "DeltaSource",
    "Entity",
    "FeatureSet",
    "FlywheelError",
    "JobFailedError",
    "ModelWatch",
    "News",
    "NotFound",
    "OnDemandView",
    "ParquetSource",
    "RequestSource",
    "StreamSource",
    "StreamView",
    "Unavailable",
    "alerts_table",
    "compile_definitions",
    "count",
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
    "versions_table",
]  # fmt: skip
