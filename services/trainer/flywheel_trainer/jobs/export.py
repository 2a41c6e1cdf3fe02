"""The kind EXPORT: converts a model to another number format, and checks it against its source."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from flywheel_job.export.params import FUNCTION, MODEL, ROWS, ExportParams
from flywheel_job.launch import LABEL
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.errors import InvalidSpec, UnsupportedSignature
from flywheel_trainer.jobs.export_spec import FIELD, ExportSpec, check_export_spec
from flywheel_trainer.jobs.files import FAILURE, OUTCOME
from flywheel_trainer.jobs.job import Job
from flywheel_trainer.jobs.kinds import Launch
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.model_launch import launch_of, outcome_of
from flywheel_trainer.jobs.model_spec import microseconds
from flywheel_trainer.jobs.models import Models
from flywheel_trainer.jobs.ports import TrainingSets
from flywheel_trainer.jobs.resources import Request
from flywheel_trainer.jobs.train import TrainSettings


class ExportKind:
    """`Kind` of EXPORT jobs."""

    def __init__(self, training_sets: TrainingSets, models: Models, settings: TrainSettings) -> None:
        self._training_sets, self._models, self._settings = training_sets, models, settings

    async def validate(self, spec: ExportSpec) -> Mapping[str, Any]:
        check_export_spec(spec)
        found = await self._models.get(spec.source, "")
        tensors = [(one.data_type, one.flat) for one in found.file.tensors]
        if tensors != [("FLOAT32", False)]:
            raise UnsupportedSignature(
                f"{spec.source.name} has {len(tensors)} input tensors with the types "
                f"{', '.join(data_type for data_type, _ in tensors)}; EXPORT converts models with one "
                "tensor FLOAT32 [rows, inputs]."
            )
        rows = await self._training_sets.get(spec.training_set)
        known = {column.name for column in (*rows.columns, *rows.extra_columns)} | {LABEL}
        missing = [one.name for one in found.file.inputs if one.name not in known]
        if missing or not rows.row_count:
            problem = f"no column {missing[0]!r}, which {found.file.name} reads" if missing else "no rows"
            raise InvalidSpec(f"{rows.name} has {problem}.", field=f"{FIELD}.training_set")
        params = ExportParams(
            format=spec.format,
            policy=spec.policy,
            calibration_rows=spec.calibration_rows,
            evaluation_rows=spec.evaluation_rows,
            per_channel=spec.per_channel,
            start_us=microseconds(spec.start),
            end_us=microseconds(spec.end),
        )
        return {
            "params": params.params(),
            "models": {MODEL: found.file.to_json()},
            "data": {ROWS: {"uri": rows.uri, "name": rows.name, "content_hash": rows.content_hash}},
        }

    def request(self, spec: ExportSpec) -> Request:
        return Request(1, spec.cpus or self._settings.cpus_per_worker, 0)

    def limits(self, spec: ExportSpec) -> Limits:
        return spec.limits

    def launch(self, job: Job, details: Mapping[str, Any], attempt: int) -> Launch:
        request = self.request(job.spec)
        return launch_of(job, attempt, self._settings, request, FUNCTION, details, job.spec.seed)

    def progress(self, job: Job, steps: Mapping[str, int]) -> Mapping[str, Any]:
        return {"done": steps.get("scanned_rows", 0), "total": 0, "unit": "row"}

    async def conclude(
        self, read: Callable[[str], Awaitable[bytes | None]]
    ) -> tuple[Outcome | None, Outcome | None]:
        return await outcome_of(read, OUTCOME), await outcome_of(read, FAILURE)
