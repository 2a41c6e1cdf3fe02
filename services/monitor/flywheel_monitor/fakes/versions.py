"""`Policies` and `Versions` in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from flywheel_common.errors import FlywheelError
from flywheel_monitor.evaluation.ports import Frontier
from flywheel_monitor.fakes.data import Data
from flywheel_monitor.ingest.batches import PredictionColumns, Role, VariantKey
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.references.ports import ReferenceSource
from flywheel_monitor.references.reference import ScoreReference
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.output import Output
from flywheel_monitor.windows.support import SUPPORT


class MemoryVersions:
    _data: Data
    _source: ReferenceSource

    async def set_policy(self, model: str, policy: MonitorPolicy) -> None:
        self._data.models[model] = self._data.model(model), policy

    async def policy(self, model: str) -> MonitorPolicy | None:
        found = self._data.models.get(model)
        return None if found is None else found[1] or MonitorPolicy()

    async def policies(self) -> list[tuple[int, str, MonitorPolicy]]:
        return [(n, name, policy or MonitorPolicy()) for name, (n, policy) in self._data.models.items()]

    async def champion(self, model: str) -> str | None:
        mine = [k for k in self._data.variants if (k.model, k.role) == (model, Role.CHAMPION)]
        return max(reversed(mine), key=self._rank).model_version if mine else None

    def _rank(self, key: VariantKey) -> tuple[float, float]:
        """The SUPPORT-th newest and the newest time of a variant's predictions, each -inf without it."""
        stored = self._data.predictions.values()
        times = sorted((a.time for a in stored if a.batch.key == key), reverse=True)
        return times[SUPPORT - 1] if len(times) >= SUPPORT else -math.inf, times[0] if times else -math.inf

    async def set_first_window(self, version_id: int, reference: ScoreReference) -> None:
        version = self._data.versions[version_id]
        self._data.versions[version_id] = replace(version, first_window=version.first_window or reference)

    async def version(self, name: str) -> WatchedVersion | None:
        return next((v for v in self._data.versions.values() if v.name == name), None)

    async def watched(self, name: str) -> tuple[WatchedVersion, MonitorPolicy] | None:
        found = await self.version(name)
        policy = None if found is None else await self.policy(found.model)
        return None if found is None or policy is None else (found, policy)

    async def set_first_labels(self, version_id: int, counts: Sequence[int]) -> None:
        version = self._data.versions[version_id]
        self._data.versions[version_id] = replace(version, first_labels=version.first_labels or tuple(counts))

    async def outputs(self, model: str) -> dict[str, Output]:
        waiting = [batch for _, batch in self._data.waiting.values() if batch.key.model == model]
        known = {v.name: v.output for v in self._data.versions.values() if v.model == model}
        return {b.key.model_version: b.output for b in reversed(waiting)} | known

    async def knows_model(self, model: str) -> bool:
        waiting = any(batch.key.model == model for _, batch in self._data.waiting.values())
        if waiting or model in self._data.models:
            return True
        try:
            return await self._source.has_model(model)
        except FlywheelError as error:
            if not error.retryable:
                raise
            return True

    def known_output(self, model_version: str) -> Output | None:
        return next((v.output for v in self._data.versions.values() if v.name == model_version), None)

    async def _add_version(self, batch: PredictionColumns) -> WatchedVersion:
        key = batch.key
        version = await self.version(key.model_version)
        if version is None:
            reference = await self._source.fetch(key.model_version)
            number, model = len(self._data.versions) + 1, self._data.model(key.model)
            layout = Layout.of(
                reference.columns, reference.placed(batch.output, batch.outputs, batch.key.model_version)
            )
            version = WatchedVersion(number, key.model_version, model, key.model, reference, layout)
            self._data.versions[number] = version
            self._data.frontiers[number] = Frontier(number, model, 0, 0)
        self._data.variants.setdefault(key)
        return version
