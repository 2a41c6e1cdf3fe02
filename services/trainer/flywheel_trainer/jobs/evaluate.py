"""The kind EVALUATE: measures a model on labelled rows, and records the result as evidence."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flywheel_common.errors import FlywheelError
from flywheel_common.storage.objects import ObjectStore
from flywheel_job.launch import LABEL
from flywheel_job.model_evaluation.params import (
    CHAMPION,
    FUNCTION,
    MODEL,
    REPORT,
    ROWS,
    EvaluationParams,
)
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.errors import InvalidSpec, UnsupportedSignature
from flywheel_trainer.jobs.evaluate_spec import FIELD, EvaluateSpec, check_evaluate_spec
from flywheel_trainer.jobs.files import FAILURE, OUTCOME
from flywheel_trainer.jobs.job import Job
from flywheel_trainer.jobs.kinds import Launch
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.model_launch import launch_of, outcome_of
from flywheel_trainer.jobs.model_spec import ModelSource, microseconds
from flywheel_trainer.jobs.models import Evaluations, FoundModel, Models
from flywheel_trainer.jobs.ports import TrainingSet, TrainingSets
from flywheel_trainer.jobs.resources import Request
from flywheel_trainer.jobs.train import TrainSettings
from flywheel_trainer.jobs.verified import read_verified


@dataclass(frozen=True)
class EvaluatePeers:
    """What EVALUATE jobs need of other services and of the object store."""

    training_sets: TrainingSets
    models: Models
    evaluations: Evaluations
    objects: ObjectStore


class EvaluateKind:
    """`Kind` of EVALUATE jobs."""

    def __init__(self, peers: EvaluatePeers, settings: TrainSettings) -> None:
        self._peers, self._settings = peers, settings

    async def validate(self, spec: EvaluateSpec) -> Mapping[str, Any]:
        check_evaluate_spec(spec)
        found = await self._peers.models.get(spec.source, spec.kind)
        if spec.kind and found.file.kind != spec.kind:
            raise InvalidSpec(
                f"{FIELD}.kind is {spec.kind}, but the output of {spec.source.name} is {found.file.kind}.",
                field=f"{FIELD}.kind",
            )
        rows = await self._peers.training_sets.get(spec.training_set) if spec.training_set else None
        if rows is not None:
            _check_rows(spec, rows, found)
        champion, note = await self._champion(spec, found, rows)
        models = {MODEL: found.file} | ({CHAMPION: champion.file} if champion else {})
        false_positive, false_negative = spec.costs or (None, None)
        params = EvaluationParams(
            label=spec.label_column,
            weight_column=spec.weight_column,
            slices=spec.slice_columns,
            start_us=microseconds(spec.start),
            end_us=microseconds(spec.end),
            samples=spec.bootstrap_samples,
            confidence=spec.confidence,
            beta=spec.beta,
            false_positive_cost=false_positive,
            false_negative_cost=false_negative,
            threshold=spec.threshold,
            note=note,
            record_evidence=spec.record_evidence,
        )
        data = {
            "uri": rows.uri if rows else spec.parquet_uri,
            "name": spec.training_set,
            "content_hash": rows.content_hash if rows else "",
        }
        return {
            "params": params.params(),
            "models": {name: file.to_json() for name, file in models.items()},
            "data": {ROWS: data},
        }

    async def _champion(
        self, spec: EvaluateSpec, found: FoundModel, rows: TrainingSet | None
    ) -> tuple[FoundModel | None, str]:
        """The model to compare with, or why there is none."""
        if spec.without_champion:
            return None, "compared with nothing, as the job asks"
        if spec.champion_of:
            return await self._serving(spec, found, rows)
        if not spec.champion:
            return None, "the model of a run has no champion: name one"
        champion = await self._peers.models.get(ModelSource(model_version=spec.champion), "")
        problem = _incomparable(champion, found, rows)
        if problem:
            raise InvalidSpec(f"{FIELD}.champion: {problem}.", field=f"{FIELD}.champion")
        return champion, ""

    async def _serving(
        self, spec: EvaluateSpec, found: FoundModel, rows: TrainingSet | None
    ) -> tuple[FoundModel | None, str]:
        """The model in production, or why it is not compared with."""
        try:
            serving = await self._peers.models.champion(spec.champion_of)
        except UnsupportedSignature as error:
            return None, f"not compared: {error}"
        if serving is None:
            return None, "no champion to compare with"
        if serving.file.name == spec.source.model_version:
            return None, "the version is the champion itself"
        problem = _incomparable(serving, found, rows)
        return (None, f"not compared: {problem}") if problem else (serving, "")

    def request(self, spec: EvaluateSpec) -> Request:
        return Request(1, spec.cpus or self._settings.cpus_per_worker, 0)

    def limits(self, spec: EvaluateSpec) -> Limits:
        return spec.limits

    def launch(self, job: Job, details: Mapping[str, Any], attempt: int) -> Launch:
        request = self.request(job.spec)
        return launch_of(job, attempt, self._settings, request, FUNCTION, details, job.spec.seed)

    def progress(self, job: Job, steps: Mapping[str, int]) -> Mapping[str, Any]:
        if "sample" in steps:
            return {"done": steps["sample"], "total": job.spec.bootstrap_samples, "unit": "sample"}
        return {"done": steps.get("scored_rows", 0), "total": 0, "unit": "row"}

    async def conclude(
        self, read: Callable[[str], Awaitable[bytes | None]]
    ) -> tuple[Outcome | None, Outcome | None]:
        """Record the evidence before the job ends, so that a job that succeeded has recorded it.

        While the registry does not answer, the job waits. A refusal of the registry fails the job.
        """
        success, failure = await outcome_of(read, OUTCOME), await outcome_of(read, FAILURE)
        if success is not None and success.succeeded:
            try:
                await self._record(success)
            except FlywheelError as error:
                if error.retryable:
                    raise
                return None, Outcome.failed(error)
        return success, failure

    async def _record(self, success: Outcome) -> None:
        artifact = next(one for one in success.artifacts if one.name == REPORT)
        report = json.loads(await read_verified(self._peers.objects, artifact.sha256))
        if not report["record_evidence"]:
            return
        rows = f"{report['rows']} rows of {report['training_set']} ({report['content_hash'][:12]})"
        compared = report["note"] or f"compared with {report['champion']} on the same rows"
        findings = [
            f"passed: measured by {report['job']} on {rows}, {report['time_range']}",
            f"passed: {compared}",
        ]
        await self._peers.evaluations.record(
            report["model"],
            report["evidence"],
            report["champion"],
            findings,
            f"{report['job']}:evidence",
        )


def _check_rows(spec: EvaluateSpec, rows: TrainingSet, found: FoundModel) -> None:
    """Raises InvalidSpec if the training set cannot be evaluated, as far as its description tells."""
    if not rows.row_count:
        raise InvalidSpec(f"{rows.name} has no rows.", field=f"{FIELD}.training_set")
    known = {column.name for column in (*rows.columns, *rows.extra_columns)} | {LABEL}
    missing = [one.name for one in found.file.inputs if one.name not in known]
    if missing:
        raise InvalidSpec(
            f"{rows.name} has no column {missing[0]!r}, which {found.file.name} reads.",
            field=f"{FIELD}.training_set",
        )
    for name, column in (("label_column", spec.label_column), ("weight_column", spec.weight_column)):
        if column and column not in known:
            raise InvalidSpec(
                f"{FIELD}.{name} names {column!r}, which is no column of {rows.name}.",
                field=f"{FIELD}.{name}",
            )
    if spec.record_evidence and found.training_set == rows.name and spec.start is None:
        raise InvalidSpec(
            f"{FIELD}.record_evidence on {rows.name}, which the version was trained on, needs start_time: "
            "metrics of rows that a model learned from are no evidence.",
            field=f"{FIELD}.record_evidence",
        )


def _incomparable(champion: FoundModel, found: FoundModel, rows: TrainingSet | None) -> str:
    """Why a champion cannot be compared with; empty if it can, as far as is known."""
    theirs, ours = champion.file, found.file
    if theirs.kind != ours.kind:
        return f"the output of {theirs.name} is {theirs.kind}"
    if theirs.classes != ours.classes:
        return f"{theirs.name} has the classes {', '.join(theirs.classes)[:200]}"
    if rows is not None:
        known = {column.name for column in (*rows.columns, *rows.extra_columns)}
        missing = [one.name for one in theirs.inputs if one.name not in known]
        if missing:
            return f"{rows.name} has no column {missing[0]!r}, which {theirs.name} reads"
    return ""
