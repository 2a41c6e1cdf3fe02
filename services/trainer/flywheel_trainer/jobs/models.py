"""The models that jobs read: versions of the registry, and models that runs exported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from flywheel_common.errors import NotFound
from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import MODEL, REPORT, artifact_key
from flywheel_job.model_file import InputTensor, ModelFile
from flywheel_job.scoring import INPUT, SCORE
from flywheel_job.signature import Input
from flywheel_trainer.jobs.errors import NoModelFile
from flywheel_trainer.jobs.model_report import calibration_json, output_of
from flywheel_trainer.jobs.model_spec import ModelSource
from flywheel_trainer.jobs.verified import read_verified
from flywheel_trainer.runs.errors import UnknownRun
from flywheel_trainer.runs.run import Run, RunName


@dataclass(frozen=True)
class FoundModel:
    """A model on this service's object store, and the training set that it learned from (may be empty)."""

    file: ModelFile
    training_set: str = ""


class RegistryModels(Protocol):
    """Model versions of the registry, as files on this service's object store.

    - `version` returns a version, with calibration and threshold of its `report.json` if it has one.
    - `champion` returns the version that production serves, with those of its release; None without one.

    Both raise UnknownModelVersion, NoModelFile, UnsupportedSignature, DigestMismatch, PeerUnavailable and
    S3Unavailable.
    """

    async def version(self, name: str) -> FoundModel: ...

    async def champion(self, model: str) -> FoundModel | None: ...


class RunReader(Protocol):
    """Reads runs; `get_run` returns None for an unknown one."""

    async def get_run(self, name: RunName) -> Run | None: ...


class Models:
    """The models that jobs name: those of the registry, and artifacts of runs."""

    def __init__(self, registry: RegistryModels, runs: RunReader, objects: ObjectStore, bucket: str) -> None:
        self._registry, self._runs, self._objects, self._bucket = registry, runs, objects, bucket

    async def get(self, source: ModelSource, kind: str) -> FoundModel:
        """The model of a version or run; `kind` counts for a run whose report names no task.

        Raises UnknownRun and the errors of `RegistryModels.version`.
        """
        if source.model_version:
            return await self._registry.version(source.model_version)
        name = RunName.parse(source.run)
        run = await self._runs.get_run(name)
        if run is None:
            raise UnknownRun.of(name)
        artifacts = {one.name: one for one in run.artifacts}
        for needed in (MODEL, REPORT):
            if needed not in artifacts:
                raise NoModelFile(f"{name} has no artifact {needed}.")
        try:
            report = json.loads(await read_verified(self._objects, artifacts[REPORT].sha256))
        except (NotFound, ValueError) as error:
            raise NoModelFile(f"{REPORT} of {name} cannot be read: {error}") from error
        graph = artifacts[MODEL]
        # By digest: the address in a run is what its creator wrote.
        uri = f"s3://{self._bucket}/{artifact_key(graph.sha256)}"
        return model_of_report(str(name), uri, graph.sha256, report, kind)

    async def champion(self, model: str) -> FoundModel | None:
        """The version that production serves. Raises the errors of `RegistryModels.champion`."""
        return await self._registry.champion(model)


class Evaluations(Protocol):
    """The evidence of model versions in the registry.

    `record` returns the name of the evidence and is idempotent by request_id. Raises NotFound,
    RequestIdReused, InvalidArgument for values that are not finite, and PeerUnavailable.
    """

    async def record(
        self, version: str, values: Mapping[str, float], champion: str, findings: list[str], request_id: str
    ) -> str: ...


def calibrated_as(file: ModelFile, report: Mapping[str, Any]) -> ModelFile:
    """The model with the calibration and threshold that a report has.

    The calibration is the slope and intercept of Platt scaling, or the JSON form of another kind. Raises
    TypeError, KeyError or ValueError for anything else.
    """
    calibration, threshold = calibration_json(report), report.get("threshold")
    return replace(
        file,
        calibration=calibration or file.calibration,
        threshold=file.threshold if threshold is None else float(threshold),
    )


def model_of_report(run: str, uri: str, sha256: str, report: Mapping[str, Any], kind: str) -> FoundModel:
    """The model that a run exported; `kind` counts if the report names no task.

    Raises NoModelFile if the report has another form than `ctx.export` writes.
    """
    try:
        inputs = tuple(Input(i["name"], i["data_type"], tuple(i["vocabulary"])) for i in report["inputs"])
        output = output_of(report, kind)
        file = ModelFile(
            name=run,
            uri=uri,
            sha256=sha256,
            tensors=(InputTensor(INPUT, "FLOAT32", inputs),),
            output=SCORE,
            kind=output.kind.name,
            classes=output.class_names,
        )
        return FoundModel(calibrated_as(file, report), str(report.get("training_set", "")))
    except (KeyError, TypeError, ValueError) as error:
        raise NoModelFile(f"The report of {run} does not describe {MODEL}: {error!r}.") from error
