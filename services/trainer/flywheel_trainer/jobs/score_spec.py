"""The specification of a SCORE job, and its validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from flywheel_common.names import Pattern
from flywheel_job.batch_scoring.spec import PARTITION_ROWS
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.limits import Limits, check_limits
from flywheel_trainer.jobs.train_spec import MAX_WORKERS

RELEASE = Pattern("projects/{project}/models/{model}/releases/{release:int}")
VERSION = Pattern("projects/{project}/models/{model}/versions/{version:int}")
MAX_TTL_SECONDS = 366 * 86_400


@dataclass(frozen=True)
class ScoreSpec:
    """What a SCORE job scores, and who gets the predictions."""

    KIND: ClassVar[str] = "SCORE"

    experiment: str
    release: str
    """A release or a model version."""
    table_uri: str
    timestamp_field: str = ""
    as_of_micros: int = 0
    """Microseconds since 1970; 0: the time of the submission."""
    cache_ttl_seconds: float = 0.0
    """0: the gateways do not get the predictions."""
    workers: int = 1
    cpus_per_worker: float = 0.0
    """0: the trainer's setting."""
    partition_rows: int = PARTITION_ROWS
    limits: Limits = field(default_factory=Limits)
    training_set: str = ""
    """Empty: the filter of ListJobs reads it of every kind."""


def check_score_spec(spec: ScoreSpec) -> None:
    """Raises InvalidSpec naming the field."""
    ttl = spec.cache_ttl_seconds
    whole = ttl == int(ttl) and 0 <= ttl <= MAX_TTL_SECONDS
    named = RELEASE.match(spec.release) or VERSION.match(spec.release)
    fits = 1000 <= spec.partition_rows <= 10_000_000
    problems = [
        (not spec.experiment, "experiment", "must name the experiment of the run"),
        (not named, "release", "must name a release (projects/{project}/models/{model}/releases/{release})"),
        (not spec.table_uri.startswith("s3://"), "table_uri", "must be an s3:// address"),
        (spec.as_of_micros < 0, "as_of", "must be after 1970-01-01"),
        (bool(spec.as_of_micros and spec.timestamp_field), "as_of", "must be unset with timestamp_field"),
        (not whole, "cache_ttl", "must be whole seconds up to 366 days"),
        (ttl > 0 and not RELEASE.match(spec.release), "cache_ttl", "needs a release, not a version"),
        (not 1 <= spec.workers <= MAX_WORKERS, "workers", f"must be between 1 and {MAX_WORKERS}"),
        (not 0 <= spec.cpus_per_worker <= 1024, "cpus_per_worker", "must be between 0 and 1024"),
        (not fits, "partition_rows", "must be between 1,000 and 10,000,000"),
    ]
    for wrong, name, rule in problems:
        if wrong:
            raise InvalidSpec(f"score.{name} {rule}.", field=f"score.{name}")
    check_limits(spec.limits, "score")
