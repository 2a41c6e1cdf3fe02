"""The kind SCORE: batch inference with a release for every row of a table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError, Unavailable
from flywheel_common.event_time import EventTimeBound
from flywheel_common.value import from_micros
from flywheel_job.artifacts import ARTIFACTS
from flywheel_job.batch_scoring.spec import (
    CACHE_URL,
    CHECK,
    FINISH,
    OUTPUT_COLUMNS,
    ROWS,
    ROWS_CACHED,
    ROWS_DONE,
    ROWS_RESUMED,
    ROWS_TOTAL,
    SCORE,
    ModelFile,
    ScoringParams,
)
from flywheel_job.launch import LABEL, TIME, DataSet, LaunchSpec, Resources
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.errors import FeaturesNotJoined, NoPredictionCache, WrongTable
from flywheel_trainer.jobs.files import FAILURE, OUTCOME, SPEC, attempt_key, checkpoint_prefix, log_prefix
from flywheel_trainer.jobs.job import Job, JobName, JobState
from flywheel_trainer.jobs.kinds import Launch, Preparation
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.resources import Request
from flywheel_trainer.jobs.score_spec import ScoreSpec, check_score_spec
from flywheel_trainer.jobs.scoring_ports import ScoredRelease, ScoringPeers, SetFields, TableShape, absent
from flywheel_trainer.jobs.train import DRIVER, TrainSettings, outcome_of

PREDICTIONS = "predictions"
"""Prefix of all predictions in the trainer's bucket."""


@dataclass(frozen=True)
class ScoreSettings:
    """How SCORE jobs are started."""

    jobs: TrainSettings
    cache_url: str
    """Redis of the gateways; empty: none."""


class ScoreKind:
    """`Kind` and `PreparedKind` of SCORE jobs."""

    def __init__(self, peers: ScoringPeers, settings: ScoreSettings, clock: Clock) -> None:
        self._peers, self._settings, self._clock = peers, settings, clock
        self._times = EventTimeBound(clock)
        self._builds: dict[JobName, str] = {}
        """Jobs of the feature service that this process has started; a new process asks for them again."""

    async def validate(self, spec: ScoreSpec) -> Mapping[str, Any]:
        check_score_spec(spec)
        if spec.as_of_micros:
            self._times.check(spec.as_of_micros, "score.as_of")
        if spec.cache_ttl_seconds and not self._settings.cache_url:
            raise NoPredictionCache("The trainer has no Redis for cached predictions: leave cache_ttl unset.")
        release = await self._peers.releases.of(spec.release)
        fields = await self._peers.feature_sets.fields(release.feature_set)
        table = await self._peers.tables.shape(spec.table_uri)
        check_table(spec, table, fields, release)
        own = [name for name in table.columns if name not in (*fields.join_keys, spec.timestamp_field)]
        return {
            "model": release.model,
            "feature_set": release.feature_set,
            "message": asdict(release.message),
            "files": [asdict(file) for file in release.files],
            "join_keys": list(fields.join_keys),
            "carried": [*fields.join_keys, TIME, *own],
            "as_of_micros": 0 if spec.timestamp_field else spec.as_of_micros or self._times.now(),
        }

    def request(self, spec: ScoreSpec) -> Request:
        return Request(spec.workers, spec.cpus_per_worker or self._settings.jobs.cpus_per_worker)

    def limits(self, spec: ScoreSpec) -> Limits:
        return spec.limits

    async def prepare(self, job: Job, details: Mapping[str, Any]) -> Preparation:
        """Joins the features; the join of a job is one job of the feature service."""
        joins, name = self._peers.joins, job.name
        try:
            if name not in self._builds:
                spine = {"file": _spine(job.spec, details)}
                self._builds[name] = await joins.build(
                    name.project, details["feature_set"], spine, f"{name.job}:features"
                )
            state, training_set, text = await joins.job(self._builds[name])
            if state is JobState.SUCCEEDED:
                found = await joins.get(training_set)
                self._builds.pop(name)
                return Preparation({**details, "uri": found.uri, "training_set": found.name})
        except Unavailable:
            raise
        except FlywheelError as error:
            self._builds.pop(name, None)
            return Preparation(error=FeaturesNotJoined(f"{error.reason}: {error.message}"))
        if state in (JobState.FAILED, JobState.CANCELLED, JobState.LOST):
            self._builds.pop(name)
            return Preparation(error=FeaturesNotJoined(f"{training_set or 'The join'} {state}: {text}"))
        return Preparation(message=f"joins the features to the table: {text}".rstrip(": "))

    def launch(self, job: Job, details: Mapping[str, Any], attempt: int) -> Launch:
        settings, score = self._settings.jobs, job.spec
        params = ScoringParams(
            release=score.release,
            model=details["model"],
            release_uri=details["message"]["uri"],
            release_sha256=details["message"]["sha256"],
            files=[ModelFile(**file) for file in details["files"]],
            join_keys=list(details["join_keys"]),
            carried=list(details["carried"]),
            predictions_uri=f"s3://{settings.bucket}/{predictions_prefix(job.name)}/",
            partition_rows=score.partition_rows,
            cache_ttl_seconds=int(score.cache_ttl_seconds),
        )
        spec = LaunchSpec(
            job=str(job.name),
            run=str(job.run),
            function=SCORE,
            attempt=attempt,
            output_uri=f"s3://{settings.bucket}/{ARTIFACTS}",
            outcome_uri=self._uri(job, attempt, OUTCOME),
            failure_uri=self._uri(job, attempt, FAILURE),
            checkpoint_uri=f"s3://{settings.bucket}/{checkpoint_prefix(job.name)}",
            log_uri=f"s3://{settings.bucket}/{log_prefix(job.name, '').rstrip('/')}",
            trainer_address=settings.metrics_address,
            workers=score.workers,
            check=CHECK,
            export=FINISH,
            params=params.params(),
            data={ROWS: DataSet(details["uri"], details["training_set"])},
            resources=Resources(cpus=self.request(score).cpus_per_worker),
        )
        command = (settings.python, "-m", DRIVER, self._uri(job, attempt, SPEC))
        secret = {CACHE_URL: self._settings.cache_url} if score.cache_ttl_seconds else {}
        reads = (*spec.inputs, params.release_uri, *(file.uri for file in params.files))
        return Launch({SPEC: spec.to_json()}, command, secret, reads=reads, writes=(params.predictions_uri,))

    def _uri(self, job: Job, attempt: int, file: str) -> str:
        return f"s3://{self._settings.jobs.bucket}/{attempt_key(job.name, attempt, file)}"

    def progress(self, job: Job, steps: Mapping[str, int]) -> Mapping[str, Any]:
        total, resumed = steps.get(ROWS_TOTAL, 0), steps.get(ROWS_RESUMED, 0)
        done = max(steps.get(ROWS_DONE, 0), resumed)
        progress = {"done": done, "total": total, "unit": "rows", "message": ""}
        started = job.attempts[-1].started_at if job.attempts else None
        if steps.get(ROWS_CACHED):
            progress["message"] = f"{steps[ROWS_CACHED]:,} predictions are cached"
        elif started is not None and total > done > resumed:
            left = (self._clock.now() - started) / (done - resumed) * (total - done)
            progress["message"] = f"about {_rounded(left)} left"
        return progress

    async def conclude(
        self, read: Callable[[str], Awaitable[bytes | None]]
    ) -> tuple[Outcome | None, Outcome | None]:
        return outcome_of(await read(OUTCOME)), outcome_of(await read(FAILURE))


def predictions_prefix(name: JobName) -> str:
    """The folder of a job's predictions, without a slash at the end."""
    return f"{PREDICTIONS}/{name.project}/{name.job}"


def check_table(spec: ScoreSpec, table: TableShape, fields: SetFields, release: ScoredRelease) -> None:
    """Raises WrongTable."""
    if not table.rows:
        raise WrongTable(f"{spec.table_uri} has no rows.")
    needed = [*fields.join_keys, *fields.request_fields]
    if spec.timestamp_field:
        needed.append(spec.timestamp_field)
    if (name := absent(needed, table.columns)) is not None:
        raise WrongTable(
            f"{spec.table_uri} has no column {name!r}; {release.feature_set} needs: {', '.join(needed)}.",
            column=name,
        )
    reserved = {*OUTPUT_COLUMNS, *({*release.features, LABEL, TIME} - {*needed})}
    for name in table.columns:
        if name in reserved:
            raise WrongTable(
                f"{spec.table_uri} has the column {name!r}, which is one of the predictions' own: rename it.",
                column=name,
            )


def _spine(spec: ScoreSpec, details: Mapping[str, Any]) -> dict[str, Any]:
    """The FileSpine of the feature service, as JSON."""
    spine = {"uri": spec.table_uri}
    if spec.timestamp_field:
        return spine | {"timestamp_field": spec.timestamp_field}
    moment = from_micros(details["as_of_micros"])
    return spine | {"as_of": moment.isoformat(timespec="microseconds").replace("+00:00", "Z")}


def _rounded(left: timedelta) -> str:
    seconds = max(1, round(left.total_seconds()))
    if seconds < 90:
        return f"{seconds} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
