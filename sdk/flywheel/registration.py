"""Registration of models from ONNX files: signature, golden rows, upload and check."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flywheel.artifact_calls import ArtifactCalls
from flywheel.connection import request_id
from flywheel.errors import InvalidModelError, NotFound
from flywheel.onnx_signature import Feature, OnnxFile, Tensors, generated_rows, output_spec
from flywheel_common.signature import FLOAT32, FLOAT64, Signature
from flywheel_common.signature_messages import signature_message, tensor_message
from flywheel_protos.feature.v1 import feature_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2

MODEL_FILE = "model.onnx"
"""Name of the artifact that gateways load."""


class RegistrationCalls(ArtifactCalls):
    """Registers models that were trained outside of the platform."""

    async def register(
        self,
        model: str,
        file: str | Path,
        *,
        feature_set: str = "",
        signature: Signature | Literal["auto"] = "auto",
        samples: Tensors | npt.NDArray[Any] | None = None,
        kind: str = "binary",
        output: str = "",
        class_names: Sequence[str] = (),
        unit: str = "",
        size: int = 0,
        vocabularies: Mapping[str, Sequence[str]] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        description: str = "",
        training_run: str = "",
    ) -> model_pb2.ModelVersion:
        """Registers an ONNX file as a version of a model, which is created when it does not exist.

        Returns the version after the registry has checked it. `signature="auto"` takes names, types and
        shapes from the graph. A tensor that is named like a feature (`view__feature`) holds it; one other
        tensor holds all other features, in the order of the feature set. `vocabularies` maps text features
        that the model gets as numbers to their values.

        `kind` is `binary`, `multiclass` (with `class_names`), `regression` (with `unit`) or `vector` (with
        `size`); `output` names the output tensor, by default the only one of numbers.

        `samples` are rows of the input tensors, by tensor name, or one array for the only tensor; by default
        they are random values. ONNX Runtime answers them here, and every server has to reproduce the answers.
        `training_run` is the run that made the file, by its id or name.

        Raises SignatureError with all differences between graph and feature set before anything is stored,
        and InvalidModelError with all problems that the registry found.
        """
        if signature == "auto" and not feature_set:
            raise ValueError("Give the feature set that has the inputs of the model, or a signature.")
        graph = await asyncio.to_thread(OnnxFile, Path(file))
        if signature == "auto":
            features = await self._features(feature_set, vocabularies or {})
            signature = graph.signature(features, output_spec(kind, output, class_names, unit, size))
        rows = _rows(signature, samples)
        golden = await asyncio.to_thread(_golden_rows, graph, signature, rows)
        message = model_pb2.ModelVersion(
            framework="onnx",
            training_run=self.path("runs", training_run) if training_run else "",
            feature_set=self.path("featureSets", feature_set) if feature_set else "",
            signature=signature_message(signature),
            golden_rows=golden,
            artifacts=[
                model_pb2.Artifact(
                    name=MODEL_FILE,
                    size_bytes=len(graph.content),
                    sha256=hashlib.sha256(graph.content).hexdigest(),
                )
            ],
            metrics=metrics,
            tags=tags,
            description=description,
        )
        version = await self._create_version(model, message)
        version = await self.upload_artifact(version.name, MODEL_FILE, graph.content)
        if version.artifact_state == model_pb2.ARTIFACT_STATE_INVALID:
            raise InvalidModelError(version.name, list(version.check_problems))
        return version

    async def _features(self, feature_set: str, vocabularies: Mapping[str, Sequence[str]]) -> list[Feature]:
        request = feature_pb2.GetFeatureSetRequest(name=self.path("featureSets", feature_set))
        found = (await self.feature.GetFeatureSet(request)).feature_set
        if unknown := vocabularies.keys() - {f.name for f in found.schema}:
            raise ValueError(f"{min(unknown)} is no feature of {found.name}, so it has no vocabulary.")
        return [
            Feature(f.name, int(f.data_type), f.vector_size, tuple(vocabularies.get(f.name, ())))
            for f in found.schema
        ]

    async def _create_version(self, model: str, version: model_pb2.ModelVersion) -> model_pb2.ModelVersion:
        name = self.path("models", model)
        request = registry_pb2.CreateModelVersionRequest(
            parent=name, model_version=version, request_id=request_id()
        )
        try:
            return (await self.registry.CreateModelVersion(request)).model_version
        except NotFound as error:
            if error.reason != "UNKNOWN_MODEL":
                raise
        parent, _, model_id = name.rpartition("/models/")
        await self.registry.CreateModel(
            registry_pb2.CreateModelRequest(parent=parent, model_id=model_id, request_id=request_id())
        )
        return (await self.registry.CreateModelVersion(request)).model_version


def _rows(signature: Signature, samples: Tensors | npt.NDArray[Any] | None) -> Tensors:
    if samples is None:
        return generated_rows(signature)
    if isinstance(samples, Mapping):
        return samples
    names = [tensor.name for tensor in signature.input_tensors]
    if len(names) != 1:
        raise ValueError(f"The model has the tensors {', '.join(names)}: give samples by tensor name.")
    return {names[0]: samples}


def _golden_rows(graph: OnnxFile, signature: Signature, rows: Tensors) -> model_pb2.GoldenRows:
    answer = graph.run(rows, signature.output.tensor)
    finite = np.isfinite(answer.reshape(len(answer), -1)).all(axis=1)
    if not finite.any():
        raise ValueError("The model answers no sample row with finite numbers: give other samples.")
    types = {tensor.name: tensor.data_type for tensor in signature.input_tensors}
    output_type = FLOAT64 if answer.dtype == np.float64 else FLOAT32
    return model_pb2.GoldenRows(
        row_count=int(finite.sum()),
        tensors=[
            tensor_message(name, types[name], np.asarray(array)[finite]) for name, array in rows.items()
        ],
        output=tensor_message(signature.output.tensor, output_type, answer[finite]),
    )
