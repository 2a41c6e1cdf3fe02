"""Alerts in PostgreSQL. A partial unique index permits one unresolved alert per (model version, kind)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flywheel_common.kafka import topics
from flywheel_common.kafka.outbox import enqueue
from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.pool import Connection
from flywheel_common.webhooks import rows
from flywheel_common.webhooks.webhook import Webhook
from flywheel_monitor.alerts.alert import Alert
from flywheel_monitor.alerts.drift_event import DriftAnnouncement, drift_detected
from flywheel_monitor.alerts.errors import already_resolved, unknown_alert, unknown_sink
from flywheel_monitor.alerts.filter import AlertFilter
from flywheel_monitor.alerts.lifecycle import AlertState, Kind
from flywheel_monitor.alerts.notification import SinkFormat, body_of, event_id
from flywheel_monitor.alerts.silence import Silence
from flywheel_monitor.drift.features import feature_from_json
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.models.names import AlertName, ModelName
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.span import Span
from flywheel_monitor.windows.support import SUPPORT

_COLUMNS = (
    "SELECT a.*, v.name AS version_name FROM alert a JOIN model_version v ON v.id = a.model_version_id "
)
_UNRESOLVED = _COLUMNS + "WHERE a.model_version_id = $1 AND a.kind = $2 AND a.state <> 3 FOR UPDATE OF a"
_OPEN = """
INSERT INTO alert (id, project, model, model_version_id, kind, state, window_start_us, window_end_us,
    last_window_end_us,
    features, reason, opened_at)
VALUES ($1, $2, $3, $4, $5, 1, $6, $7, $7, $8, $9, clock_timestamp())
"""
_CONFIRM = """
UPDATE alert SET last_window_end_us = greatest(last_window_end_us, $3), features = $4, reason = $5
WHERE model_version_id = $1 AND kind = $2 AND state <> 3
"""
_END = """
UPDATE alert SET state = 3, resolved_at = clock_timestamp(), resolved_reason = $3
WHERE model_version_id = $1 AND kind = $2 AND state <> 3 RETURNING project, id
"""
_RETIRE = """
UPDATE alert a SET state = 3, resolved_at = clock_timestamp(),
    resolved_reason = 'the version no longer serves'
WHERE a.state <> 3 AND a.model_version_id = $1
  AND (SELECT count(*) FROM (
      SELECT FROM variant t, LATERAL (
          SELECT newest_us FROM prediction_pack WHERE variant_id = t.id AND last_us >= $2
          ORDER BY last_us DESC LIMIT $3
      ) p, unnest(p.newest_us) AS time
      WHERE t.model_version_id = $1 AND t.role <> 3 AND time >= $2 LIMIT $3
  ) served) < $3 RETURNING a.project, a.id
"""
_ANNOUNCE = """
INSERT INTO announcement (model_version_id, kind, reference_hash, start_us, end_us)
    VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING RETURNING true
"""
_GET = _COLUMNS + "WHERE a.project = $1 AND a.id = $2"
_ACKNOWLEDGE = """
UPDATE alert SET state = 2, acknowledged_by = $3 WHERE project = $1 AND id = $2 AND state = 1
RETURNING project, id
"""
_RESOLVE = """
UPDATE alert SET state = 3, resolved_at = clock_timestamp(), resolved_reason = $3 WHERE project = $1
    AND id = $2 AND state <> 3 RETURNING project, id
"""
_LIST = (
    _COLUMNS
    + """
WHERE a.project = $1 AND ($2::bigint IS NULL OR a.serial < $2) AND ($3 = '' OR a.model = $3)
  AND ($4 = 0 OR a.state = $4) AND ($5 = '' OR a.kind = $5) ORDER BY a.serial DESC LIMIT $6
"""
)
_OPEN_COUNTS = "SELECT model, kind, count(*) AS n FROM alert WHERE state <> 3 GROUP BY model, kind"

_NOT_SILENCED = """
SELECT clock_timestamp() WHERE NOT EXISTS (
    SELECT FROM alert_silence WHERE model = $1 AND kind IN ('', $2) AND until > clock_timestamp()
)
"""
_PUT_SILENCE = """
INSERT INTO alert_silence (project, model, kind, until, reason, created_by) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (model, kind) DO UPDATE
    SET until = excluded.until, reason = excluded.reason, created_by = excluded.created_by
"""
_SILENCES = """
SELECT * FROM alert_silence WHERE project = $1 AND until > clock_timestamp() ORDER BY model, kind
"""


class AlertRows:
    """`Alerts` on the transaction's connection."""

    _conn: Connection

    async def unresolved(self, version_id: int, kind: Kind) -> Alert | None:
        row = await self._conn.fetchrow(_UNRESOLVED, version_id, kind.value)
        return None if row is None else _alert(row)

    async def open_alert(
        self,
        alert_id: str,
        version: WatchedVersion,
        kind: Kind,
        span: Span,
        features: Sequence[FeatureDrift],
        reason: str,
    ) -> str:
        project = ModelName.parse(version.model).project
        await self._conn.execute(
            _OPEN,
            alert_id,
            project,
            version.model,
            version.id,
            kind.value,
            span.start_us,
            span.end_us,
            _features(features),
            reason,
        )
        name = AlertName(project, alert_id)
        await self._notify([{"project": project, "id": alert_id}])
        return str(name)

    async def confirm_alert(
        self, version_id: int, kind: Kind, span: Span, features: Sequence[FeatureDrift], reason: str
    ) -> None:
        await self._conn.execute(_CONFIRM, version_id, kind.value, span.end_us, _features(features), reason)

    async def end_alert(self, version_id: int, kind: Kind, reason: str) -> None:
        await self._notify(await self._conn.fetch(_END, version_id, kind.value, reason))

    async def retire_alerts(self, version_id: int, silent_since_us: int) -> None:
        await self._notify(await self._conn.fetch(_RETIRE, version_id, silent_since_us, SUPPORT))

    async def announce(self, drift: DriftAnnouncement) -> bool:
        window = (drift.span.start_us, drift.span.end_us)
        key = (drift.version_id, drift.kind.value, drift.reference_hash, *window)
        if not await self._conn.fetchval(_ANNOUNCE, *key):
            return False
        await enqueue(self._conn, topics.DRIFT_DETECTED, drift_detected(drift))
        return True

    async def alert(self, name: AlertName) -> Alert:
        row = await self._conn.fetchrow(_GET, name.project, name.alert)
        if row is None:
            raise unknown_alert(name)
        return _alert(row)

    async def alerts(self, project: str, wanted: AlertFilter, size: int, token: str) -> Page[Alert]:
        query = repr((project, wanted))
        key = decode_token(token, query=query)
        found = await self._conn.fetch(
            _LIST,
            project,
            key[0] if key else None,
            wanted.model,
            int(wanted.state or 0),
            wanted.kind or "",
            size + 1,
        )
        page = cut(found, size, lambda r: [r["serial"]], query=query)
        return Page([_alert(r) for r in page.items], page.next_page_token)

    async def acknowledge_alert(self, name: AlertName, by: str) -> Alert:
        await self._notify(await self._conn.fetch(_ACKNOWLEDGE, name.project, name.alert, by))
        alert = await self.alert(name)
        if alert.state == AlertState.RESOLVED:
            raise already_resolved(name)
        return alert

    async def resolve_alert(self, name: AlertName, reason: str) -> Alert:
        await self._notify(await self._conn.fetch(_RESOLVE, name.project, name.alert, reason))
        return await self.alert(name)

    async def _notify(self, changed: Sequence[Mapping[str, Any]]) -> None:
        """Store what is to be sent about these alerts."""
        for row in changed:
            sinks = await rows.webhooks(self._conn, row["project"])
            if not sinks:
                continue
            alert = await self.alert(AlertName(row["project"], row["id"]))
            now = await self._conn.fetchval(_NOT_SILENCED, alert.model, alert.kind.value)
            for sink in sinks if now is not None else ():
                body = body_of(SinkFormat(sink.format), alert, now)
                await rows.enqueue_delivery(self._conn, sink, event_id(alert), body)

    async def put_sink(self, sink: Webhook) -> None:
        await rows.put_webhook(self._conn, sink)

    async def sinks(self, project: str) -> list[Webhook]:
        return await rows.webhooks(self._conn, project)

    async def delete_sink(self, project: str, sink: str) -> None:
        if not await rows.delete_webhook(self._conn, project, sink):
            raise unknown_sink(project, sink)

    async def put_silence(self, silence: Silence) -> None:
        await self._conn.execute(
            _PUT_SILENCE,
            ModelName.parse(silence.model).project,
            silence.model,
            silence.kind or "",
            silence.until,
            silence.reason,
            silence.created_by,
        )

    async def silences(self, project: str) -> list[Silence]:
        return [_silence(row) for row in await self._conn.fetch(_SILENCES, project)]

    async def open_alerts(self) -> dict[tuple[str, str], int]:
        return {(r["model"], r["kind"]): r["n"] for r in await self._conn.fetch(_OPEN_COUNTS)}


def _features(features: Sequence[FeatureDrift]) -> str:
    return json.dumps([asdict(f) for f in features])


def _alert(row: Mapping[str, Any]) -> Alert:
    return Alert(
        name=str(AlertName(row["project"], row["id"])),
        model=row["model"],
        model_version=row["version_name"],
        kind=Kind(row["kind"]),
        state=AlertState(row["state"]),
        span=Span(row["window_start_us"], row["window_end_us"]),
        last_window_end_us=row["last_window_end_us"],
        features=tuple(feature_from_json(f) for f in json.loads(row["features"])),
        reason=row["reason"],
        opened_at=row["opened_at"],
        resolved_at=row["resolved_at"],
        acknowledged_by=row["acknowledged_by"],
        resolved_reason=row["resolved_reason"],
    )


def _silence(row: Mapping[str, Any]) -> Silence:
    kind = Kind(row["kind"]) if row["kind"] else None
    return Silence(row["model"], kind, row["until"], row["reason"], row["created_by"])
