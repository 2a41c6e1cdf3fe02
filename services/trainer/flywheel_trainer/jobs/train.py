"""The kind TRAIN: trains a model on a training set with a recipe."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.files import FAILURE, OUTCOME, SPEC, attempt_key, log_prefix
from flywheel_trainer.jobs.job import Job
from flywheel_trainer.jobs.kinds import Launch
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.ports import TrainingSets, Weights
from flywheel_trainer.jobs.resources import Request
from flywheel_trainer.jobs.train_spec import TrainSpec, check_spec, check_weight_column
from flywheel_trainer.recipes.artifacts import ARTIFACTS
from flywheel_trainer.recipes.outcome import Outcome
from flywheel_trainer.recipes.tabular.spec import Column, TabularSpec, WarmStart

RECIPE = "flywheel_trainer.recipes.tabular"
"""Module that an attempt runs."""


@dataclass(frozen=True)
class TrainSettings:
    """How TRAIN jobs are started."""

    bucket: str
    python: str
    """Interpreter on the machines of the cluster."""
    metrics_address: str
    """host:port of this service for live metrics."""
    cpus_per_worker: float


class TrainKind:
    """`Kind` of TRAIN jobs."""

    def __init__(self, training_sets: TrainingSets, weights: Weights, settings: TrainSettings) -> None:
        self._training_sets, self._weights, self._settings = training_sets, weights, settings

    async def validate(self, spec: TrainSpec) -> Mapping[str, Any]:
        check_spec(spec)
        training_set = await self._training_sets.get(spec.training_set)
        if spec.workers > training_set.row_count:
            raise InvalidSpec(
                f"train.workers is {spec.workers}, but each worker needs a row and {spec.training_set} has "
                f"{training_set.row_count}.",
                field="train.workers",
            )
        check_weight_column(spec, training_set.extra_columns)
        warm: dict[str, str] | None = None
        if spec.warm_start:
            found = await self._weights.of(spec.warm_start)
            if found is None:
                raise InvalidSpec(f"{spec.warm_start} has no weights to start from: leave warm_start empty.")
            warm = {"version": spec.warm_start, "uri": found[0], "sha256": found[1]}
        return {
            "uri": training_set.uri,
            "columns": [[c.name, c.data_type] for c in training_set.columns],
            "warm_start": warm,
        }

    def request(self, spec: TrainSpec) -> Request:
        cpus = spec.cpus_per_worker or self._settings.cpus_per_worker
        return Request(spec.workers, cpus, spec.gpus_per_worker)

    def limits(self, spec: TrainSpec) -> Limits:
        return spec.limits

    def launch(self, job: Job, details: Mapping[str, Any], attempt: int) -> Launch:
        warm = details["warm_start"]
        request = self.request(job.spec)

        def uri(file: str) -> str:
            return f"s3://{self._settings.bucket}/{attempt_key(job.name, attempt, file)}"

        spec = TabularSpec(
            job=str(job.name),
            run=str(job.run),
            training_set=job.spec.training_set,
            uri=details["uri"],
            columns=tuple(Column(name, data_type) for name, data_type in details["columns"]),
            output_uri=f"s3://{self._settings.bucket}/{ARTIFACTS}",
            outcome_uri=uri(OUTCOME),
            failure_uri=uri(FAILURE),
            log_uri=f"s3://{self._settings.bucket}/{log_prefix(job.name, '').rstrip('/')}",
            attempt=attempt,
            trainer_address=self._settings.metrics_address,
            workers=job.spec.workers,
            gpus_per_worker=job.spec.gpus_per_worker,
            cpus_per_worker=request.cpus_per_worker,
            hyperparameters=job.spec.hyperparameters,
            warm_start=WarmStart(**warm) if warm else None,
        )
        return Launch({SPEC: spec.to_json()}, (self._settings.python, "-m", RECIPE, uri(SPEC)))

    def progress(self, job: Job, steps: Mapping[str, int]) -> Mapping[str, Any]:
        total = job.spec.hyperparameters.epochs
        return {"done": steps.get("train_loss", 0), "total": total, "unit": "epoch"}

    async def conclude(
        self, read: Callable[[str], Awaitable[bytes | None]]
    ) -> tuple[Outcome | None, Outcome | None]:
        return _outcome(await read(OUTCOME)), _outcome(await read(FAILURE))


def _outcome(data: bytes | None) -> Outcome | None:
    try:
        return None if data is None else Outcome.from_json(data)
    except ValueError:
        return None
