"""What a SCORE job computes: the parameters that the trainer passes to the job's code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CHECK = "flywheel_job.batch_scoring.job:check"
SCORE = "flywheel_job.batch_scoring.job:score"
FINISH = "flywheel_job.batch_scoring.job:finish"
ROWS = "rows"
"""Name of the data set: the table with its features."""
PARTITION_ROWS = 250_000
CACHE_URL = "FLYWHEEL_JOB_CACHE_URL"
"""Variable with the address of the Redis of the gateways; only SCORE jobs that fill it have it."""
REPORT = "score.json"
"""Artifact of the run with the address, the columns and the counts of the predictions."""

ROWS_DONE, ROWS_RESUMED, ROWS_TOTAL, ROWS_CACHED = "rows_done", "rows_resumed", "rows_total", "rows_cached"
"""Metrics of progress; the step of the last point is the number of rows."""

SCORE_COLUMN, DECISION, PREDICTED_CLASS = "score", "decision", "predicted_class"
VALUES, ERROR_REASON = "values", "error_reason"
OUTPUT_COLUMNS = (SCORE_COLUMN, DECISION, PREDICTED_CLASS, VALUES, ERROR_REASON)
"""Columns of predictions that a table cannot have."""


@dataclass(frozen=True)
class ModelFile:
    """A file of the model version on the trainer's S3."""

    name: str
    uri: str
    sha256: str


@dataclass(frozen=True)
class ScoringParams:
    """Parameters of the job. Lists are JSON lists."""

    release: str
    """Resource name of the release or model version."""
    model: str
    release_uri: str
    """`s3://bucket/key` of the `registry.v1.ServingRelease` message."""
    release_sha256: str
    files: list[ModelFile]
    join_keys: list[str]
    carried: list[str]
    """Columns of the table that the predictions keep: keys, time, request fields and extra columns."""
    predictions_uri: str
    """`s3://bucket/prefix/` of the predictions."""
    partition_rows: int = PARTITION_ROWS
    cache_ttl_seconds: int = 0
    """How long the gateways may use the predictions; 0: they do not get them."""

    def params(self) -> Mapping[str, Any]:
        """The fields of a LaunchSpec's `params`."""
        return asdict(self)
