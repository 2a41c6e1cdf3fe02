"""`Alerts` in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flywheel_common.clock import Clock
from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.webhooks.webhook import Webhook
from flywheel_monitor.alerts.alert import Alert
from flywheel_monitor.alerts.drift_event import DriftAnnouncement
from flywheel_monitor.alerts.errors import already_resolved, unknown_alert, unknown_sink
from flywheel_monitor.alerts.filter import AlertFilter
from flywheel_monitor.alerts.lifecycle import AlertState, Kind
from flywheel_monitor.alerts.notification import SinkFormat, body_of, event_id
from flywheel_monitor.alerts.silence import Silence
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.fakes.data import Data
from flywheel_monitor.models.names import AlertName, ModelName
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.span import Span
from flywheel_monitor.windows.support import SUPPORT


class MemoryAlerts:
    _data: Data
    _clock: Clock

    def _change(self, serial: int, **changes: Any) -> Alert:
        version_id, alert = self._data.alerts[serial]
        self._data.alerts[serial] = version_id, replace(alert, **changes)
        if "state" in changes:
            self._notify(self._data.alerts[serial][1])
        return self._data.alerts[serial][1]

    def _notify(self, alert: Alert) -> None:
        now = self._clock.now()
        silences = (self._data.silences.get((alert.model, kind)) for kind in (None, alert.kind))
        if any(silence is not None and silence.until > now for silence in silences):
            return
        for (project, name), sink in self._data.sinks.items():
            if project == AlertName.parse(alert.name).project:
                body = body_of(SinkFormat(sink.format), alert, now)
                self._data.deliveries.setdefault((project, name, event_id(alert)), body)

    async def put_sink(self, sink: Webhook) -> None:
        self._data.sinks[sink.project, sink.id] = sink

    async def sinks(self, project: str) -> list[Webhook]:
        return [sink for (p, _), sink in sorted(self._data.sinks.items()) if p == project]

    async def delete_sink(self, project: str, sink: str) -> None:
        if self._data.sinks.pop((project, sink), None) is None:
            raise unknown_sink(project, sink)
        for key in [key for key in self._data.deliveries if key[:2] == (project, sink)]:
            del self._data.deliveries[key]

    async def put_silence(self, silence: Silence) -> None:
        self._data.silences[silence.model, silence.kind] = silence

    async def silences(self, project: str) -> list[Silence]:
        found = [
            s
            for s in self._data.silences.values()
            if ModelName.parse(s.model).project == project and s.until > self._clock.now()
        ]
        return sorted(found, key=lambda s: (s.model, s.kind or ""))

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
            name=name,
            model=version.model,
            model_version=version.name,
            kind=kind,
            state=AlertState.OPEN,
            span=span,
            last_window_end_us=span.end_us,
            features=tuple(features),
            reason=reason,
            opened_at=self._clock.now(),
        )
        self._data.alerts[len(self._data.alerts) + 1] = version.id, alert
        self._notify(alert)
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
            a
            for a in self._data.predictions.values()
            if a.batch.key.model_version == name and not a.batch.shadow and a.time >= silent_since_us
        ]
        if len(served) < SUPPORT:
            for serial in self._open(version_id):
                self._resolve(serial, "the version no longer serves")

    async def announce(self, drift: DriftAnnouncement) -> bool:
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
