"""Gateway reports in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from flywheel_common.clock import Clock
from flywheel_registry.serving.gateways import Gateway, ObservedModel

_NEVER = datetime.fromtimestamp(0, UTC)
_LIVE = timedelta(seconds=1)


class MemoryGateways:
    """`Gateways` of one replica. Replicas that share `reports` see each other's gateways."""

    def __init__(self, clock: Clock, reports: dict[str, Gateway] | None = None) -> None:
        self._clock = clock
        self._reports = {} if reports is None else reports
        self._callbacks: set[Callable[[], None]] = set()

    async def heartbeat(self, gateway: str, observed: Sequence[ObservedModel]) -> None:
        self._reports[gateway] = replace(
            self._of(gateway), last_heartbeat=self._clock.now(), observed=tuple(observed)
        )
        for callback in tuple(self._callbacks):
            callback()

    async def set_project(self, gateway: str, project: str) -> None:
        self._reports[gateway] = replace(self._of(gateway), project=project)

    async def remove(self, gateway: str) -> None:
        self._reports.pop(gateway, None)

    async def recent(self, within_seconds: float, after: str = "", limit: int = 1000) -> list[Gateway]:
        now = self._clock.now()
        found = [
            replace(report, live=report.last_heartbeat >= now - _LIVE)
            for name, report in sorted(self._reports.items())
            if name > after and report.last_heartbeat >= now - timedelta(seconds=within_seconds)
        ]
        return found[:limit]

    def on_heartbeat(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._callbacks.add(callback)
        return lambda: self._callbacks.discard(callback)

    def _of(self, gateway: str) -> Gateway:
        return self._reports.get(gateway, Gateway(gateway, _NEVER, live=False, observed=()))
