"""The kind TRAIN: trains a model on a training set with a recipe."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flywheel_job.artifacts import ARTIFACTS
from flywheel_job.launch import Column, DataSet, LaunchSpec, Resources, Segment, Source
from flywheel_job.model_file import ModelFile
from flywheel_job.outcome import Outcome
from flywheel_job.recipes.tabular.spec import CHECK, EXPORT, TRAIN, TabularSpec, WarmStart
from flywheel_trainer.jobs.built_in import check_built_in, check_columns
from flywheel_trainer.jobs.code import CodeRecipe
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.files import FAILURE, OUTCOME, SPEC, attempt_key, checkpoint_prefix, log_prefix
from flywheel_trainer.jobs.job import Job
from flywheel_trainer.jobs.kinds import Launch
from flywheel_trainer.jobs.limits import Limits
from flywheel_trainer.jobs.models import RegistryModels
from flywheel_trainer.jobs.ports import TrainingSets, Weights
from flywheel_trainer.jobs.resources import Request
from flywheel_trainer.jobs.sources import Sources, source_key
from flywheel_trainer.jobs.teacher import find_teacher
from flywheel_trainer.jobs.train_spec import TrainSpec, check_spec, check_weight_column

DRIVER = "flywheel_job"
"""Module that an attempt runs."""
ENVIRONMENTS = "flywheel_job.environments"
"""Module that runs another one in the environment of the job."""


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

    def __init__(
        self,
        training_sets: TrainingSets,
        weights: Weights,
        models: RegistryModels,
        sources: Sources,
        settings: TrainSettings,
    ) -> None:
        self._training_sets, self._weights, self._models = training_sets, weights, models
        self._sources, self._settings = sources, settings

    async def validate(self, spec: TrainSpec) -> Mapping[str, Any]:
        check_spec(spec)
        if spec.code is not None:
            check_built_in(spec.code, spec.workers)
        return await self.find_inputs(spec)

    async def find_inputs(self, spec: TrainSpec) -> Mapping[str, Any]:
        """The part of `validate` that reads from other services, for a spec that was checked."""
        if spec.code is not None:
            return await self._validate_code(spec.code, spec.workers)
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
        teacher = await find_teacher(self._models, spec, training_set)
        return {
            "uri": training_set.uri,
            "columns": [[c.name, c.data_type] for c in training_set.columns],
            "content_hash": training_set.content_hash,
            "warm_start": warm,
            "teacher": teacher.to_json() if teacher else None,
        }

    async def _validate_code(self, code: CodeRecipe, workers: int) -> Mapping[str, Any]:
        if code.source_sha256:
            await self._sources.require(code.source_sha256)
        data = {}
        for name, resource in code.training_sets.items():
            found = await self._training_sets.get(resource)
            if workers > found.row_count:
                raise InvalidSpec(
                    f"train.workers is {workers}, but each worker needs a row and {resource} has "
                    f"{found.row_count}.",
                    field="train.workers",
                )
            check_columns(code, found)
            columns = [[column.name, column.data_type] for column in found.columns]
            data[name] = {"uri": found.uri, "columns": columns, "content_hash": found.content_hash}
        return {"data": data}

    def request(self, spec: TrainSpec) -> Request:
        cpus = spec.cpus_per_worker or self._settings.cpus_per_worker
        memory, gpu = (
            (spec.code.memory_bytes_per_worker, spec.code.accelerator_type) if spec.code else (0, "")
        )
        return Request(spec.workers, cpus, spec.gpus_per_worker, memory, gpu)

    def limits(self, spec: TrainSpec) -> Limits:
        return spec.limits

    def launch(self, job: Job, details: Mapping[str, Any], attempt: int) -> Launch:
        spec = self.launch_spec(job, job.spec, details, attempt)
        command = self.command(job, attempt, DRIVER, spec.requirements)
        return Launch({SPEC: spec.to_json()}, command, reads=self.inputs(spec, details))

    def inputs(self, spec: LaunchSpec, details: Mapping[str, Any]) -> tuple[str, ...]:
        """Addresses of what a launch reads."""
        warm = details.get("warm_start")
        return (*spec.inputs, warm["uri"]) if warm else spec.inputs

    def command(self, job: Job, attempt: int, driver: str, requirements: str) -> tuple[str, ...]:
        """The command line of an attempt; `driver` is its module."""
        modules = (ENVIRONMENTS, driver) if requirements else (driver,)
        return self._settings.python, "-m", *modules, self._uri(job, attempt, SPEC)

    def launch_spec(self, job: Job, spec: TrainSpec, details: Mapping[str, Any], attempt: int) -> LaunchSpec:
        """What an attempt of `job` runs to train `spec`."""
        return LaunchSpec(
            job=str(job.name),
            run=str(job.run),
            attempt=attempt,
            output_uri=f"s3://{self._settings.bucket}/{ARTIFACTS}",
            outcome_uri=self._uri(job, attempt, OUTCOME),
            failure_uri=self._uri(job, attempt, FAILURE),
            checkpoint_uri=f"s3://{self._settings.bucket}/{checkpoint_prefix(job.name)}",
            log_uri=f"s3://{self._settings.bucket}/{log_prefix(job.name, '').rstrip('/')}",
            trainer_address=self._settings.metrics_address,
            workers=spec.workers,
            **(self._tabular(spec, details) if spec.code is None else self._code(spec, spec.code, details)),
        )

    def _tabular(self, spec: TrainSpec, details: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a LaunchSpec for the tabular recipe."""
        warm, teacher = details["warm_start"], details.get("teacher")
        columns = tuple(Column(name, data_type) for name, data_type in details["columns"])
        digest = details.get("content_hash", "")
        recipe = TabularSpec(
            training_set=spec.training_set,
            uri=details["uri"],
            columns=columns,
            workers=spec.workers,
            hyperparameters=spec.hyperparameters,
            warm_start=WarmStart(**warm) if warm else None,
            teacher=ModelFile.from_json(teacher) if teacher else None,
        )
        return {
            "check": CHECK,
            "function": TRAIN,
            "export": EXPORT,
            "params": recipe.params(),
            "models": recipe.models(),
            "data": {"train": DataSet(details["uri"], spec.training_set, columns, digest)},
            "resources": Resources(cpus=self.request(spec).cpus_per_worker, gpus=spec.gpus_per_worker),
            "seed": spec.hyperparameters.seed,
            "schedule": tuple(Segment(one.until_step, one.params) for one in spec.schedule),
        }

    def _code(self, spec: TrainSpec, code: CodeRecipe, details: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a LaunchSpec for training code."""
        uri = f"s3://{self._settings.bucket}/{source_key(code.source_sha256)}"
        return {
            "check": code.check,
            "function": code.function,
            "export": code.export,
            "source": Source(uri, code.source_sha256) if code.source_sha256 else None,
            "params": code.params,
            "data": {
                name: DataSet(
                    one["uri"],
                    code.training_sets[name],
                    tuple(Column(*column) for column in one["columns"]),
                    one["content_hash"],
                )
                for name, one in details["data"].items()
            },
            "resources": Resources(
                self.request(spec).cpus_per_worker,
                spec.gpus_per_worker,
                code.memory_bytes_per_worker,
                code.accelerator_type,
                dict(code.environment),
            ),
            "seed": code.seed,
            "provenance": dict(code.provenance),
            "requirements": code.requirements,
            "schedule": tuple(Segment(one.until_step, one.params) for one in code.schedule),
        }

    def _uri(self, job: Job, attempt: int, file: str) -> str:
        return f"s3://{self._settings.bucket}/{attempt_key(job.name, attempt, file)}"

    def progress(self, job: Job, steps: Mapping[str, int]) -> Mapping[str, Any]:
        spec = job.spec
        if spec.code is not None:
            return {"done": max(steps.values(), default=0), "total": 0, "unit": "step"}
        total = spec.hyperparameters.epochs
        return {"done": steps.get("train_loss", 0), "total": total, "unit": "epoch"}

    async def conclude(
        self, read: Callable[[str], Awaitable[bytes | None]]
    ) -> tuple[Outcome | None, Outcome | None]:
        return outcome_of(await read(OUTCOME)), outcome_of(await read(FAILURE))


def outcome_of(data: bytes | None) -> Outcome | None:
    try:
        return None if data is None else Outcome.from_json(data)
    except ValueError:
        return None
