"""`ports.Store` in memory, for unit tests of the use cases. Held to the same contract suite as PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from flywheel_common.clock import Clock
from flywheel_common.context import current_principal
from flywheel_common.errors import InvalidArgument, Unavailable
from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.idempotency import MAX_REQUEST_ID
from flywheel_monitor.alert import Alert, AlertFilter, Announcement, already_resolved, unknown_alert
from flywheel_monitor.alerts import AlertState, Kind
from flywheel_monitor.batches import Role
from flywheel_monitor.drift import FeatureDrift, Verdict
from flywheel_monitor.evaluation import Judged, Report
from flywheel_monitor.memory_answers import Data, MemoryAnswers
from flywheel_monitor.memory_archive import MemoryArchive
from flywheel_monitor.policy import MonitorPolicy
from flywheel_monitor.ports import Records
from flywheel_monitor.references import Reference, ReferenceSource, WatchedVersion
from flywheel_monitor.resource_names import AlertName, ModelName
from flywheel_monitor.score_shift import ScoreReference
from flywheel_monitor.windows import Frontier, Newest, Span, window_of


class MemoryStore:
    """`ports.Store`: transactions run one after the other."""

    def __init__(self, source: ReferenceSource, pane_us: int, clock: Clock) -> None:
        self._data = Data()
        self._source, self._pane_us, self._clock = source, pane_us, clock
        self._turn = asyncio.Lock()

    @property
    def announced(self) -> list[Announcement]:
        """What went out, in order."""
        return list(self._data.announced.values())

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[MemoryRecords]:
        async with self._turn:
            changed = self._data.copy()
            yield MemoryRecords(changed, self._source, self._pane_us, self._clock)
            vars(self._data).update(vars(changed))  # readers that are at work see it from here on

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[MemoryRecords]:
        yield MemoryRecords(self._data, self._source, self._pane_us, self._clock)

    async def once(
        self, method: str, request_id: str, body: bytes, effect: Callable[[Records], Awaitable[bytes]]
    ) -> bytes:
        if len(request_id) > MAX_REQUEST_ID:
            raise InvalidArgument(
                f"request_id is longer than {MAX_REQUEST_ID} characters.", reason="INVALID_REQUEST_ID"
            )
        async with self.transaction() as records:
            return await records.once((current_principal().subject, method, request_id), body, effect)


class MemoryRecords(MemoryAnswers, MemoryArchive):
    """`ports.Records` on one copy of the data."""

    def __init__(self, data: Data, source: ReferenceSource, pane_us: int, clock: Clock) -> None:
        self._data, self._source, self._pane_us, self._clock = data, source, pane_us, clock

    async def once(
        self, key: tuple[str, str, str], body: bytes, effect: Callable[[Records], Awaitable[bytes]]
    ) -> bytes:
        """`ports.Store.once` inside a transaction."""
        if not key[-1]:
            return await effect(self)
        known = self._data.answered.get(key)
        if known is None:
            self._data.answered[key] = known = body, await effect(self)
        if known[0] != body:
            raise InvalidArgument(
                f"request_id {key[-1]!r} was used for another {key[1]} request: use a new id for a new request.",
                reason="REQUEST_ID_REUSED",
                request_id=key[-1],
            )
        return known[1]

    # policies and versions ------------------------------------------------------------------------------------
    async def set_policy(self, model: str, policy: MonitorPolicy) -> None:
        self._data.models[model] = self._data.model(model), policy

    async def policy(self, model: str) -> MonitorPolicy | None:
        found = self._data.models.get(model)
        return None if found is None else found[1] or MonitorPolicy()

    async def policies(self) -> list[tuple[int, str, MonitorPolicy]]:
        return [(n, name, policy or MonitorPolicy()) for name, (n, policy) in self._data.models.items()]

    async def champion(self, model: str) -> str | None:
        served = self._data.variants.items()
        mine = [(time, key) for key, time in served if (key.model, key.role) == (model, Role.CHAMPION)]
        return max(reversed(mine), key=lambda m: m[0])[1].model_version if mine else None

    async def set_first_window(self, version_id: int, reference: ScoreReference) -> None:
        version = self._data.versions[version_id]
        self._data.versions[version_id] = replace(version, first_window=version.first_window or reference)

    # reports --------------------------------------------------------------------------------------------------
    async def read_up_to(self) -> Newest:
        return Newest(_by_model(self._data.newest), _by_model(self._data.newest_labels))

    async def frontiers(self) -> list[Frontier]:
        return list(self._data.frontiers.values())

    async def windows(self, version_id: int, start_us: int, end_us: int, window_us: int) -> list[Span]:
        times = [answer.time for answer, _ in self._data.served(version_id)]
        found = {window_of(time, window_us) for time in times}
        return sorted(span for span in found if start_us <= span.start_us < end_us)

    async def lock(self, version_id: int) -> WatchedVersion:
        return self._data.versions[version_id]

    async def put_report(self, version_id: int, report: Report) -> None:
        self._data.reports[version_id, report.span] = report

    async def put_verdict(
        self, version_id: int, kind: Kind, span: Span, verdict: Verdict, reason: str
    ) -> None:
        self._data.verdicts[version_id, kind, span] = Judged(verdict, span, reason)

    async def recent(self, version_id: int, kind: Kind, limit: int) -> list[Judged]:
        mine = [j for (v, k, _), j in self._data.verdicts.items() if (v, k) == (version_id, kind)]
        enough = [j for j in mine if j.verdict is not Verdict.INSUFFICIENT]
        return sorted(enough, key=lambda j: (j.span.end_us, j.span.start_us), reverse=True)[:limit]

    async def close(self, version_id: int, until_us: int, *, labels: bool) -> None:
        f = self._data.frontiers[version_id]
        self._data.frontiers[version_id] = (
            replace(f, labelled_until=max(f.labelled_until, until_us))
            if labels
            else replace(f, closed_until=max(f.closed_until, until_us))
        )

    async def newest_report(self, version_id: int) -> Report | None:
        mine = [r for (v, _), r in self._data.reports.items() if v == version_id and r.predictions > 0]
        return max(mine, key=lambda r: (r.span.end_us, r.span.start_us), default=None)

    async def evaluated(self, project: str) -> int:
        models = self._models(project)
        return sum(self._data.versions[v].model_id in models for v, _ in self._data.reports)

    # alerts ---------------------------------------------------------------------------------------------------
    def _change(self, serial: int, **changes: Any) -> Alert:
        version_id, alert = self._data.alerts[serial]
        self._data.alerts[serial] = version_id, replace(alert, **changes)
        return self._data.alerts[serial][1]

    def _resolve(self, serial: int, reason: str) -> Alert:
        return self._change(
            serial, state=AlertState.RESOLVED, resolved_at=self._clock.now(), resolved_reason=reason
        )

    def _open(self, version_id: int, kind: Kind | None = None) -> list[int]:
        """Serials of the alerts of a version that are not resolved."""
        return [
            serial
            for serial, (v, a) in self._data.alerts.items()
            if v == version_id and kind in (None, a.kind) and a.state is not AlertState.RESOLVED
        ]

    def _serial(self, name: AlertName) -> int:
        found = (serial for serial, (_, a) in self._data.alerts.items() if a.name == str(name))
        serial = next(found, None)
        if serial is None:
            raise unknown_alert(name)
        return serial

    async def unresolved(self, version_id: int, kind: Kind) -> Alert | None:
        serials = self._open(version_id, kind)
        return self._data.alerts[serials[0]][1] if serials else None

    async def open_alert(
        self,
        alert_id: str,
        version: WatchedVersion,
        kind: Kind,
        span: Span,
        features: Sequence[FeatureDrift],
        reason: str,
    ) -> str:
        name = str(AlertName(ModelName.parse(version.model).project, alert_id))
        alert = Alert(
            name, version.model, version.name, kind, AlertState.OPEN, span, span.end_us, tuple(features), reason,
            opened_at=self._clock.now(),
        )  # fmt: skip
        self._data.alerts[len(self._data.alerts) + 1] = version.id, alert
        return name

    async def confirm_alert(
        self, version_id: int, kind: Kind, span: Span, features: Sequence[FeatureDrift], reason: str
    ) -> None:
        for serial in self._open(version_id, kind):
            newest = max(self._data.alerts[serial][1].last_window_end_us, span.end_us)
            self._change(serial, last_window_end_us=newest, features=tuple(features), reason=reason)

    async def end_alert(self, version_id: int, kind: Kind, reason: str) -> None:
        for serial in self._open(version_id, kind):
            self._resolve(serial, reason)

    async def retire_alerts(self, version_id: int, silent_since_us: int) -> None:
        name = self._data.versions[version_id].name
        served = [
            time
            for key, time in self._data.variants.items()
            if key.model_version == name and key.role is not Role.SHADOW
        ]
        if max(served, default=0) < silent_since_us:
            for serial in self._open(version_id):
                self._resolve(serial, "the version no longer serves")

    async def announce(self, drift: Announcement) -> bool:
        key = drift.version_id, drift.kind, drift.reference_hash, drift.span
        if key in self._data.announced:
            return False
        self._data.announced[key] = drift
        return True

    async def alert(self, name: AlertName) -> Alert:
        return self._data.alerts[self._serial(name)][1]

    async def alerts(self, project: str, wanted: AlertFilter, size: int, token: str) -> Page[Alert]:
        query = repr((project, wanted))
        after = decode_token(token, query=query)
        found = [
            (serial, a)
            for serial, (_, a) in reversed(self._data.alerts.items())
            if AlertName.parse(a.name).project == project
            and wanted.model in ("", a.model)
            and wanted.state in (None, a.state)
            and wanted.kind in (None, a.kind)
            and (after is None or serial < int(str(after[0])))
        ]
        page = cut(found[: size + 1], size, lambda row: [row[0]], query=query)
        return Page([a for _, a in page.items], page.next_page_token)

    async def acknowledge_alert(self, name: AlertName, by: str) -> Alert:
        serial = self._serial(name)
        alert = self._data.alerts[serial][1]
        if alert.state is AlertState.RESOLVED:
            raise already_resolved(name)
        if alert.state is AlertState.ACKNOWLEDGED:
            return alert
        return self._change(serial, state=AlertState.ACKNOWLEDGED, acknowledged_by=by)

    async def resolve_alert(self, name: AlertName, reason: str) -> Alert:
        serial = self._serial(name)
        alert = self._data.alerts[serial][1]
        return alert if alert.state is AlertState.RESOLVED else self._resolve(serial, reason)

    async def open_alerts(self) -> dict[tuple[str, str], int]:
        counts: dict[tuple[str, str], int] = {}
        for _, alert in self._data.alerts.values():
            if alert.state is not AlertState.RESOLVED:
                key = alert.model, alert.kind.value
                counts[key] = counts.get(key, 0) + 1
        return counts


def _by_model(newest: dict[tuple[int, int], int]) -> dict[int, dict[int, int]]:
    """model id → partition → newest event time."""
    found: dict[int, dict[int, int]] = {}
    for (model, partition), time in newest.items():
        found.setdefault(model, {})[partition] = time
    return found


class MemoryReferences:
    """`references.ReferenceSource` out of a dictionary; `away`: nobody answers."""

    def __init__(self) -> None:
        self.known: dict[str, Reference] = {}
        self.away = False

    async def fetch(self, model_version: str) -> Reference:
        if self.away:
            raise Unavailable("Nobody answers.", reason="UNAVAILABLE")
        unknown = Reference(reason="the version is not known")
        return self.known.get(model_version, unknown)
