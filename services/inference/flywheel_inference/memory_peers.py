"""The gateway's peers in memory, for tests of what asks them. Held to the same contract suites as their RPCs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import numpy as np

from flywheel_common.errors import DataLoss, NotFound, Unavailable
from flywheel_inference.release import ArtifactSpec, Contract, FieldSpec, ObservedModel
from flywheel_inference.tensor import NOT_FOUND, NULL, PRESENT, FeatureBlock, FeatureColumn


class MemoryRegistry:
    """`serving.RegistryPort` and `release_loader.ArtifactSource`. `artifacts` are bytes by version and file name; `reports`
    what it was told, in order."""

    def __init__(self, desired: bytes = b"") -> None:
        self.artifacts: dict[tuple[str, str], bytes] = {}
        self.reports: list[tuple[ObservedModel, ...]] = []
        self._desired = desired
        self._down = False
        self._changed = asyncio.Event()

    def want(self, desired: bytes) -> None:
        """The desired state from now on."""
        self._desired = desired
        self._wake()

    def set_down(self, down: bool) -> None:
        """While it is, nothing is answered and streams break."""
        self._down = down
        self._wake()

    async def watch(self) -> AsyncIterator[bytes]:
        while True:
            self._answering()
            changed = self._changed
            yield self._desired
            await changed.wait()

    async def report(self, models: Sequence[ObservedModel], timeout: float) -> None:
        self._answering()
        self.reports.append(tuple(models))

    async def download(self, model_version: str, artifact: ArtifactSpec, timeout: float) -> bytes:
        self._answering()
        content = self.artifacts.get((model_version, artifact.name))
        if content is None:
            raise NotFound(f"{model_version} has no file {artifact.name}.", reason="UNKNOWN_MODEL_VERSION")
        if len(content) > artifact.size_bytes:
            raise DataLoss(
                f"{artifact.name} of {model_version} is longer than the {artifact.size_bytes} bytes declared.",
                reason="WRONG_SIZE",
            )
        return content

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _answering(self) -> None:
        if self._down:
            raise Unavailable("The registry does not answer.", reason="UNAVAILABLE")


class MemoryFeatures:
    """`scoring.FeatureLookup` and `release_loader.Contracts`: numbers by join keys. A key that `rows` lacks is NOT_FOUND, a
    number that is None is NULL. `down`: it does not answer."""

    def __init__(
        self,
        contracts: Sequence[Contract],
        features: Sequence[FieldSpec],
        rows: Mapping[tuple[object, ...], Sequence[float | None]],
    ) -> None:
        self._contracts = {contract.feature_set: contract for contract in contracts}
        self._features = tuple(features)
        self._rows = rows
        self.down = False

    async def contract(self, feature_set: str, timeout: float = 5.0) -> Contract:
        self._answering()
        if feature_set not in self._contracts:
            raise NotFound(f"{feature_set} does not exist.", reason="UNKNOWN_FEATURE_SET")
        return self._contracts[feature_set]

    async def online(
        self,
        contract: Contract,
        keys: Sequence[tuple[object, ...]],
        fields: Sequence[tuple[object, ...]],
        as_of_micros: int | None,
        timeout: float,
    ) -> FeatureBlock:
        self._answering()
        columns, statuses = [], []
        for place, spec in enumerate(self._features):
            found = [self._rows[key][place] if key in self._rows else None for key in keys]
            valid = np.array([value is not None for value in found], np.bool_)
            values = np.array([0.0 if value is None else value for value in found])
            columns.append(FeatureColumn(spec.name, spec.data_type, values, valid))
            present = np.where(valid, PRESENT, NULL)
            statuses.append(np.where([key in self._rows for key in keys], present, NOT_FOUND))
        return FeatureBlock(contract.feature_set, tuple(columns), np.array(statuses, np.uint8))

    def _answering(self) -> None:
        if self.down:
            raise Unavailable("The feature service does not answer.", reason="UNAVAILABLE")
