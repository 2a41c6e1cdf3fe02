"""Batch inference: a job that scores every row of a table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from flywheel.connection import timestamp
from flywheel_protos.trainer.v1 import scoring_pb2

if TYPE_CHECKING:
    from flywheel.connection import Connection


@dataclass(frozen=True)
class ScoreJob:
    """A job that writes the predictions of a release for every row of a table.

    >>> job = fw.ScoreJob(release="late/releases/3", table="s3://bucket/tonight/", experiment="late",
    ...                   cache_for=timedelta(hours=26))
    """

    release: str
    """`{model}/releases/{release}` or `{model}/versions/{version}`, also with the project before it; empty in
    a step of a pipeline that gets it from an earlier step."""
    table: str
    """`s3://bucket/key.parquet` or a prefix: Parquet files with the entity keys and request fields."""
    experiment: str
    timestamp_field: str = ""
    """Column with the time as of which the features of a row are read; empty: `as_of` for all rows."""
    as_of: datetime | None = None
    """None: when the job is submitted."""
    cache_for: timedelta | None = None
    """How long the gateways may serve the predictions as cached answers; None: they do not get them."""
    workers: int = 1
    cpus_per_worker: float = 0.0
    """0: the setting of the trainer."""
    partition_rows: int = 0
    """Rows that are not scored again after a crash; 0: 250,000."""
    timeout: timedelta | None = None
    """None: 24 hours."""


def score_spec(job: ScoreJob, connection: Connection) -> scoring_pb2.ScoreSpec:
    """The specification of a job."""
    release = job.release
    spec = scoring_pb2.ScoreSpec(
        experiment=connection.path("experiments", job.experiment),
        release=release if release.startswith("projects/") else connection.path("models", release),
        table_uri=job.table,
        timestamp_field=job.timestamp_field,
        as_of=timestamp(job.as_of) if job.as_of is not None else None,
        workers=job.workers,
        cpus_per_worker=job.cpus_per_worker,
        partition_rows=job.partition_rows,
    )
    if job.cache_for is not None:
        spec.cache_ttl.FromTimedelta(job.cache_for)
    if job.timeout is not None:
        spec.timeout.FromTimedelta(job.timeout)
    return spec
