"""Loads a release into the model servers: contract, verified bytes, reproduced golden rows."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from flywheel_common.errors import FlywheelError
from flywheel_inference.models.errors import (
    DigestMismatch,
    ModelTimeout,
    NoModelFile,
    UnknownRuleField,
    UnknownSegmentKey,
)
from flywheel_inference.models.model_file import ModelFile
from flywheel_inference.models.ports import ArtifactCache, ArtifactSource, FeatureSetContracts
from flywheel_inference.models.replica import LOAD_SECONDS
from flywheel_inference.models.replicas import Replicas
from flywheel_inference.models.triton_config import MODEL_FILE
from flywheel_inference.releases.release import ArtifactSpec, FeatureSetContract, ReleaseSpec

SPREAD_SECONDS = 5.0
"""How long the first model server with a release waits for the others before it answers alone."""


class ReleaseLoader:
    """Loads releases into the model servers. A model version that several releases share is loaded once."""

    def __init__(
        self,
        artifacts: ArtifactSource,
        contracts: FeatureSetContracts,
        cache: ArtifactCache,
        replicas: Replicas,
        *,
        spread_seconds: float = SPREAD_SECONDS,
    ) -> None:
        self._artifacts = artifacts
        self._contracts = contracts
        self._cache = cache
        self.replicas = replicas
        self._spread_seconds = spread_seconds
        self._known_contracts: dict[str, FeatureSetContract] = {}

    async def load(
        self, spec: ReleaseSpec, *, answers: bool = False
    ) -> tuple[FeatureSetContract, FlywheelError | None]:
        """Returns when a model server reproduces the golden rows, with an error of one that does not.

        `answers`: the release answers already, and others are to have it too. Raises a FlywheelError with the
        cause; it is retryable when a dependency does not answer.
        """
        contract = await self.contract(spec.feature_set)
        _check_names(spec, contract)
        artifact = _model_file(spec)
        one_at_a_time = asyncio.Lock()

        async def model_file() -> ModelFile:
            async with one_at_a_time:
                return await self._verified(spec, artifact)

        # All of them when none answers: health checks may be late.
        targets = [replica for replica in self.replicas.all if replica.up] or self.replicas.all
        loads = [replica.load(spec, artifact, model_file) for replica in targets]
        return contract, await self._spread(spec, loads, LOAD_SECONDS if answers else self._spread_seconds)

    async def _spread(
        self, spec: ReleaseSpec, loads: Sequence[Coroutine[Any, Any, None]], spread_seconds: float
    ) -> FlywheelError | None:
        """Runs all loads at once. After the first success the others have `spread_seconds`, so that a server
        that hangs does not hold the release up. Returns an error when a server has the model."""
        tasks = [asyncio.create_task(load) for load in loads]
        try:
            waiting: set[asyncio.Task[None]] = set(tasks)
            while waiting and not self.replicas.has(spec.triton_model):
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if waiting:
                await asyncio.wait(waiting, timeout=spread_seconds)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        failures: list[FlywheelError] = []
        for found in ended:
            if isinstance(found, asyncio.CancelledError):
                failures.append(ModelTimeout(f"A model server does not load {spec.triton_model} in time."))
            elif isinstance(found, FlywheelError):
                failures.append(found)
            elif found is not None:
                raise found
        if failures and not self.replicas.has(spec.triton_model):
            raise failures[0]
        return failures[0] if failures else None

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
        """Unloads a model from the servers where no other gateway holds it, which frees its memory; False:
        others hold it everywhere. Raises Unavailable, DeadlineExceeded."""
        ended = await asyncio.gather(
            *(replica.unload(triton_model) for replica in self.replicas.all), return_exceptions=True
        )
        for found in ended:
            if isinstance(found, BaseException):
                raise found
        return any(ended)

    async def _verified(self, spec: ReleaseSpec, artifact: ArtifactSpec) -> ModelFile:
        path = await asyncio.to_thread(self._cache.artifact_file, artifact.sha256)
        if path is None:
            path = await self._downloaded(spec, artifact)
        return ModelFile(path, artifact.sha256)

    async def _downloaded(self, spec: ReleaseSpec, artifact: ArtifactSpec) -> Path:
        """The event loop holds one piece of the file at a time: a copy of a large file would delay it."""
        draft = await asyncio.to_thread(self._cache.draft_artifact)
        try:
            async with aclosing(
                self._artifacts.download(spec.model_version, artifact, LOAD_SECONDS)
            ) as pieces:
                async for piece in pieces:
                    await asyncio.to_thread(draft.write, piece)
            if draft.sha256 != artifact.sha256:
                raise DigestMismatch(
                    f"{artifact.name} of {spec.model_version} has the digest {draft.sha256}, "
                    f"but {artifact.sha256} is registered."
                )
            return await asyncio.to_thread(draft.keep)
        finally:
            await asyncio.to_thread(draft.discard)


def _check_names(spec: ReleaseSpec, contract: FeatureSetContract) -> None:
    """Raises when the release uses a value that callers of its feature set do not send."""
    needs = f"but {spec.feature_set} needs only {', '.join(sorted(contract.names))}."
    mode = spec.serving.cost_mode
    for rule in mode.real_time if mode is not None else ():
        if rule.field not in contract.names:
            raise UnknownRuleField(f"The cost mode of {spec.name} has a rule for {rule.field}, {needs}")
    for key in spec.segment_keys:
        if key not in contract.names:
            raise UnknownSegmentKey(f"{spec.name} has the segment key {key}, {needs}")


def _model_file(spec: ReleaseSpec) -> ArtifactSpec:
    artifact = next((a for a in spec.artifacts if a.name == MODEL_FILE), None)
    if artifact is None:
        raise NoModelFile(f"{spec.model_version} has no file {MODEL_FILE}.")
    return artifact
