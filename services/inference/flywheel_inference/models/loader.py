"""Loads a release into the model server: contract, verified bytes, loaded model, reproduced golden rows."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Literal

import numpy as np

from flywheel_common.errors import FlywheelError
from flywheel_common.scoring.output_values import output_values, row_shapes
from flywheel_common.telemetry.logs import get_logger
from flywheel_inference.models.errors import (
    DigestMismatch,
    GoldenRowsMismatch,
    ModelRefused,
    NoGoldenRows,
    NoModelFile,
)
from flywheel_inference.models.ports import (
    ArtifactCache,
    ArtifactSource,
    FeatureSetContracts,
    ModelControl,
    ModelHolds,
)
from flywheel_inference.models.triton_config import MAX_BATCH_ROWS, MODEL_FILE, Backend, load_request
from flywheel_inference.releases.release import ArtifactSpec, FeatureSetContract, ReleaseSpec

log = get_logger(__name__)


class ReleaseLoader:
    """Loads releases into the model server. A model version that several releases share is loaded once."""

    def __init__(
        self,
        artifacts: ArtifactSource,
        contracts: FeatureSetContracts,
        cache: ArtifactCache,
        models: ModelControl,
        holds: ModelHolds,
        *,
        backend: Literal["auto", "onnxruntime", "python"] = "auto",
        instances: int = 1,
        load_seconds: float = 60.0,
    ) -> None:
        self._artifacts = artifacts
        self._contracts = contracts
        self._cache = cache
        self._models = models
        self._holds = holds
        self._backend: Backend | None = None if backend == "auto" else backend
        self._instances = instances
        self._load_seconds = load_seconds
        self._known_contracts: dict[str, FeatureSetContract] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def load(self, spec: ReleaseSpec) -> FeatureSetContract:
        """Returns when Triton reproduces the golden rows. Raises a FlywheelError with the cause; it is
        retryable when a dependency does not answer."""
        contract = await self.contract(spec.feature_set)
        async with self._locks.setdefault(spec.triton_model, asyncio.Lock()):
            artifact = _model_file(spec)
            await self._holds.hold(spec.triton_model)
            if await self._models.loaded_digest(spec.triton_model, 5.0) != artifact.sha256:
                await self._load(spec, artifact, await self._verified(spec, artifact))
            try:
                await self._check_golden(spec)
            except FlywheelError as error:
                if not error.retryable:
                    await self._models.unload(spec.triton_model, self._load_seconds)
                raise
        return contract

    async def contract(self, feature_set: str) -> FeatureSetContract:
        """The contract of a feature set version: always the same object, because versions do not change."""
        found = self._known_contracts.get(feature_set)
        if found is None:
            found = await asyncio.to_thread(self._cache.load_contract, feature_set)
        if found is None:
            found = await self._contracts.contract(feature_set)
            await asyncio.to_thread(self._cache.save_contract, found)
        return self._known_contracts.setdefault(feature_set, found)

    async def unload(self, triton_model: str) -> bool:
        """Unloads a model that no other gateway holds, which frees its memory; else returns False. Raises
        Unavailable, DeadlineExceeded."""
        async with self._locks.setdefault(triton_model, asyncio.Lock()):
            if not await self._holds.drop(triton_model):
                return False
            try:
                await self._models.unload(triton_model, self._load_seconds)
            finally:
                await self._holds.unloaded(triton_model)
            return True

    async def is_loaded(self, triton_model: str) -> bool:
        """Raises Unavailable or DeadlineExceeded when the model server does not answer."""
        return await self._models.is_loaded(triton_model, 1.0)

    async def _verified(self, spec: ReleaseSpec, artifact: ArtifactSpec) -> bytes:
        content = await asyncio.to_thread(self._cache.load_artifact, artifact.sha256)
        if content is None:
            content = await self._artifacts.download(spec.model_version, artifact, self._load_seconds)
            digest = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
            if digest != artifact.sha256:
                raise DigestMismatch(
                    f"{artifact.name} of {spec.model_version} has the digest {digest}, "
                    f"but {artifact.sha256} is registered."
                )
            await asyncio.to_thread(self._cache.save_artifact, artifact.sha256, content)
        return content

    async def _load(self, spec: ReleaseSpec, artifact: ArtifactSpec, onnx: bytes) -> None:
        for backend in ("onnxruntime", "python") if self._backend is None else (self._backend,):
            try:
                await self._load_with(backend, spec, artifact, onnx)
            except FlywheelError as error:
                # Triton's message when it was built without the native ONNX Runtime backend.
                if backend == "onnxruntime" and self._backend is None and "backend library" in error.message:
                    continue
                raise
            self._backend = backend
            log.info("model loaded", model=spec.triton_model, backend=backend)
            return

    async def _load_with(
        self, backend: Backend, spec: ReleaseSpec, artifact: ArtifactSpec, onnx: bytes
    ) -> None:
        """Golden rows may have the output in another shape of its kind than the graph, and the ONNX Runtime
        backend needs the graph's: a refusal counts when all shapes are refused."""
        golden = spec.golden.output
        shapes = [golden.shape[1:]]
        if backend == "onnxruntime":
            shapes += [shape for shape in row_shapes(spec.signature.output) if shape != golden.shape[1:]]
        refusals = []
        for shape in shapes:
            config, files = load_request(
                spec.triton_model,
                spec.signature,
                np.empty((0, *shape), golden.dtype),
                onnx,
                artifact.sha256,
                backend=backend,
                instances=self._instances,
            )
            try:
                return await self._models.load(spec.triton_model, config, files, self._load_seconds)
            except ModelRefused as error:
                refusals.append(error)
        raise refusals[0]

    async def _check_golden(self, spec: ReleaseSpec) -> None:
        golden, output = spec.golden, spec.signature.output
        rows = len(golden.output)
        if rows == 0:
            raise NoGoldenRows(
                f"{spec.model_version} has no golden rows: register a version with golden rows."
            )
        expected = output_values(output, golden.output, rows)
        for start in range(0, rows, MAX_BATCH_ROWS):
            part = slice(start, start + MAX_BATCH_ROWS)
            tensors = {name: tensor[part] for name, tensor in golden.tensors.items()}
            found = await self._models.infer(spec.triton_model, tensors, output, self._load_seconds)
            worst = np.abs(found.astype(np.float64) - expected[part]).max()
            # Written so that NaN fails.
            if not worst <= golden.tolerance:
                raise GoldenRowsMismatch(
                    f"Triton's output for the golden rows of {spec.model_version} differs by up to "
                    f"{worst:.3g}; {golden.tolerance:.3g} is allowed."
                )


def _model_file(spec: ReleaseSpec) -> ArtifactSpec:
    artifact = next((a for a in spec.artifacts if a.name == MODEL_FILE), None)
    if artifact is None:
        raise NoModelFile(f"{spec.model_version} has no file {MODEL_FILE}.")
    return artifact
