"""`RegistryModels` over the registry's API."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from flywheel_common.errors import NotFound
from flywheel_common.signature import TENSOR_TYPES, OutputKind, Signature
from flywheel_common.signature_messages import signature_from_message
from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import MODEL, REPORT
from flywheel_job.model_file import InputTensor, ModelFile
from flywheel_job.signature import Input
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.types.v1 import value_pb2
from flywheel_trainer.jobs.errors import NoModelFile, UnknownModelVersion, UnsupportedSignature
from flywheel_trainer.jobs.models import FoundModel, calibrated_as
from flywheel_trainer.store.grpc.registry import GrpcRegistry
from flywheel_trainer.store.grpc.weights import stored


class RegisteredModels:
    """`RegistryModels` that downloads a version's graph to this service's bucket if it is not there yet."""

    def __init__(self, registry: GrpcRegistry, objects: ObjectStore, bucket: str) -> None:
        self._registry, self._objects, self._bucket = registry, objects, bucket

    async def version(self, name: str) -> FoundModel:
        version = await self._version(name)
        file = await self._file(version)
        try:
            report = (
                json.loads(await self._registry.download(version, REPORT)) if _has(version, REPORT) else {}
            )
            return FoundModel(calibrated_as(file, report), version.training_dataset)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise NoModelFile(f"{REPORT} of {name} has no calibration that can be read: {error!r}") from error

    async def champion(self, model: str) -> FoundModel | None:
        try:
            release = await self._registry.production_release(model)
        except NotFound as error:
            raise UnknownModelVersion(f"Model {model!r} does not exist.") from error
        if release is None:
            return None
        version = await self._version(release.model_version)
        file = await self._file(version)
        kind = release.calibration.WhichOneof("kind")
        calibration = {kind: _fields(getattr(release.calibration, kind))} if kind else {}
        threshold = release.threshold if file.kind == OutputKind.BINARY.name else None
        served = replace(file, calibration=calibration, threshold=threshold)
        return FoundModel(served, version.training_dataset)

    async def _version(self, name: str) -> model_pb2.ModelVersion:
        try:
            return await self._registry.version(name)
        except NotFound as error:
            raise UnknownModelVersion.of(name) from error

    async def _file(self, version: model_pb2.ModelVersion) -> ModelFile:
        declared = next((one.sha256 for one in version.artifacts if one.name == MODEL), None)
        if declared is None:
            raise NoModelFile(f"{version.name} has no file {MODEL}.")
        signature = signature_from_message(version.signature)
        tensors = _tensors(version.name, signature)
        try:
            key = await stored(self._registry, self._objects, version, MODEL, declared)
        except NotFound as error:
            raise NoModelFile(f"{MODEL} of {version.name} is not stored: {error.message}") from error
        return ModelFile(
            name=version.name,
            uri=f"s3://{self._bucket}/{key}",
            sha256=declared,
            tensors=tensors,
            output=signature.output.tensor,
            kind=signature.output.kind.name,
            classes=signature.output.class_names,
        )


def _tensors(name: str, signature: Signature) -> tuple[InputTensor, ...]:
    """The input tensors. Raises UnsupportedSignature for vectors and for more than two dimensions."""
    if signature.output.kind is OutputKind.VECTOR:
        raise UnsupportedSignature(f"The output of {name} is VECTOR, which has no labels.")
    vectors = [one.name for one in signature.inputs if one.vector_size]
    if vectors:
        raise UnsupportedSignature(f"The input {vectors[0]!r} of {name} is a vector.")
    deep = [one.name for one in signature.input_tensors if len(one.shape) > 1]
    if deep:
        raise UnsupportedSignature(f"The tensor {deep[0]!r} of {name} has more than two dimensions.")
    return tuple(
        InputTensor(
            tensor.name,
            TENSOR_TYPES[tensor.data_type],
            tuple(
                Input(one.name, _data_type(one.data_type), one.vocabulary)
                for one in signature.inputs_of(tensor.name)
            ),
            flat=not tensor.shape,
        )
        for tensor in signature.input_tensors
    )


def _data_type(number: int) -> str:
    return value_pb2.DataType.Name(number).removeprefix("DATA_TYPE_")


def _has(version: model_pb2.ModelVersion, artifact: str) -> bool:
    return any(one.name == artifact for one in version.artifacts)


def _fields(calibration: Any) -> dict[str, Any]:
    """The fields of one kind of calibration; repeated ones as lists."""
    values = {field.name: getattr(calibration, field.name) for field in calibration.DESCRIPTOR.fields}
    return {name: value if isinstance(value, float) else list(value) for name, value in values.items()}
