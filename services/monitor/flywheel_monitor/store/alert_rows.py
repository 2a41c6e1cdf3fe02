"""Alerts in PostgreSQL. The partial unique index keeps one unresolved alert per (model version, kind)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flywheel_common.errors import FailedPrecondition, InvalidArgument, NotFound
from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres import Connection, Pool, connection
from flywheel_monitor.alert import Alert
from flywheel_monitor.alerts import AlertState, Kind
from flywheel_monitor.drift import FeatureDrift
from flywheel_monitor.evaluation import feature_from_json
from flywheel_monitor.resource_names import AlertName
from flywheel_monitor.windows import Span

_COLUMNS = (
    "SELECT a.*, v.name AS version_name FROM alert a JOIN model_version v ON v.id = a.model_version_id "
)
_UNRESOLVED = _COLUMNS + "WHERE a.model_version_id = $1 AND a.kind = $2 AND a.state <> 3 FOR UPDATE OF a"
_OPEN = """
INSERT INTO alert (id, project, model, model_version_id, kind, state, window_start_us, window_end_us, last_window_end_us,
    features, reason, opened_at)
VALUES ($1, $2, $3, $4, $5, 1, $6, $7, $7, $8, $9, clock_timestamp())
"""
_CONFIRM = """
UPDATE alert SET last_window_end_us = greatest(last_window_end_us, $3), features = $4, reason = $5
WHERE model_version_id = $1 AND kind = $2 AND state <> 3
"""
_RESOLVE = """
UPDATE alert SET state = 3, resolved_at = clock_timestamp(), resolved_reason = $3
WHERE model_version_id = $1 AND kind = $2 AND state <> 3
"""
_RETIRE = """
UPDATE alert a SET state = 3, resolved_at = clock_timestamp(), resolved_reason = 'the version no longer serves'
WHERE a.state <> 3 AND a.model_version_id = $1
  AND coalesce((SELECT max(last_event) FROM variant t WHERE t.model_version_id = $1 AND t.role <> 3), 0) < $2
"""
_ANNOUNCE = """
INSERT INTO announcement (model_version_id, kind, reference_hash, start_us, end_us) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT DO NOTHING RETURNING true
"""
_GET = _COLUMNS + "WHERE a.project = $1 AND a.id = $2"
_SET_STATE = "UPDATE alert SET state = 2, acknowledged_by = $3 WHERE project = $1 AND id = $2 AND state = 1"
_RESOLVE_BY_NAME = """
UPDATE alert SET state = 3, resolved_at = clock_timestamp(), resolved_reason = $3 WHERE project = $1 AND id = $2 AND state <> 3
"""
_LIST = (
    _COLUMNS
    + """
WHERE a.project = $1 AND ($2::bigint IS NULL OR a.serial < $2) AND ($3 = '' OR a.model = $3)
  AND ($4 = 0 OR a.state = $4) AND ($5 = '' OR a.kind = $5) ORDER BY a.serial DESC LIMIT $6
"""
)
_OPEN_COUNTS = "SELECT model, kind, count(*) AS n FROM alert WHERE state <> 3 GROUP BY model, kind"


class Alerts:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def unresolved(self, conn: Connection, version_id: int, kind: Kind) -> Alert | None:
        """Locked until the caller's transaction ends."""
        row = await conn.fetchrow(_UNRESOLVED, version_id, kind.value)
        return None if row is None else _alert(row)

    async def open(
        self,
        conn: Connection,
        alert_id: str,
        model: str,
        version_id: int,
        kind: Kind,
        span: Span,
        features: Sequence[FeatureDrift],
        reason: str,
    ) -> str:
        """The new alert's name. The caller has seen that none is unresolved, under the version's lock."""
        project = model.split("/")[1]
        await conn.execute(
            _OPEN,
            alert_id,
            project,
            model,
            version_id,
            kind.value,
            span.start_us,
            span.end_us,
            _features(features),
            reason,
        )
        return str(AlertName(project, alert_id))

    async def confirm(
        self,
        conn: Connection,
        version_id: int,
        kind: Kind,
        span: Span,
        features: Sequence[FeatureDrift],
        reason: str,
    ) -> None:
        await conn.execute(_CONFIRM, version_id, kind.value, span.end_us, _features(features), reason)

    async def resolve(self, conn: Connection, version_id: int, kind: Kind, reason: str) -> None:
        await conn.execute(_RESOLVE, version_id, kind.value, reason)

    async def retire(self, version_id: int, silent_since_us: int) -> None:
        """Resolves the alerts of a version that answered nobody since."""
        async with connection(self._pool) as conn:
            await conn.execute(_RETIRE, version_id, silent_since_us)

    async def first_announcement(
        self, conn: Connection, version_id: int, kind: Kind, reference_hash: str, span: Span
    ) -> bool:
        """True once per (version, kind, reference, window)."""
        return bool(
            await conn.fetchval(_ANNOUNCE, version_id, kind.value, reference_hash, span.start_us, span.end_us)
        )

    async def get(self, name: AlertName, conn: Connection | None = None) -> Alert:
        """Raises NotFound UNKNOWN_ALERT."""
        if conn is None:
            async with connection(self._pool) as own:
                return await self.get(name, own)
        row = await conn.fetchrow(_GET, name.project, name.alert)
        if row is None:
            raise NotFound(
                f"Alert {name} does not exist: ListAlerts names those that do.",
                reason="UNKNOWN_ALERT",
                alert=name,
            )
        return _alert(row)

    async def acknowledge(self, conn: Connection, name: AlertName, by: str) -> Alert:
        """Raises NotFound UNKNOWN_ALERT, FailedPrecondition ALERT_RESOLVED; repeating it keeps the first name."""
        await conn.execute(_SET_STATE, name.project, name.alert, by)
        alert = await self.get(name, conn)
        if alert.state == AlertState.RESOLVED:
            raise FailedPrecondition(
                f"Alert {name} is resolved already: nothing to acknowledge.", reason="ALERT_RESOLVED"
            )
        return alert

    async def resolve_by_name(self, conn: Connection, name: AlertName, reason: str) -> Alert:
        """Raises NotFound UNKNOWN_ALERT; resolving a resolved alert changes nothing."""
        await conn.execute(_RESOLVE_BY_NAME, name.project, name.alert, reason)
        return await self.get(name, conn)

    async def list(self, project: str, filter_text: str, size: int, token: str) -> Page[Alert]:
        """Newest first. Raises InvalidArgument INVALID_FILTER, INVALID_PAGE_TOKEN."""
        wanted = _parse_filter(filter_text)
        query = f"{project}\n{filter_text}"
        key = decode_token(token, query=query)
        state = AlertState[wanted["state"]] if "state" in wanted else 0
        async with connection(self._pool) as conn:
            rows = await conn.fetch(
                _LIST,
                project,
                key[0] if key else None,
                wanted.get("model", ""),
                int(state),
                wanted.get("kind", ""),
                size + 1,
            )
        page = cut(rows, size, lambda r: [r["serial"]], query=query)
        return Page([_alert(r) for r in page.items], page.next_page_token)

    async def open_counts(self) -> dict[tuple[str, str], int]:
        """(model, kind) → unresolved alerts."""
        async with connection(self._pool) as conn:
            return {(r["model"], r["kind"]): r["n"] for r in await conn.fetch(_OPEN_COUNTS)}


def _parse_filter(text: str) -> dict[str, str]:
    allowed = {"model": None, "state": {s.name for s in AlertState}, "kind": {k.value for k in Kind}}
    found: dict[str, str] = {}
    for term in (t.strip() for t in text.split(" AND ")) if text.strip() else ():
        key, equals, value = (part.strip().strip('"') for part in term.partition("="))
        choices = allowed.get(key, set()) if key in allowed else set()
        if not equals or key not in allowed or (choices is not None and value not in choices):
            raise InvalidArgument(
                f"{term!r} is not a filter: use model=…, state=OPEN|ACKNOWLEDGED|RESOLVED or kind=…, joined by AND.",
                reason="INVALID_FILTER",
                field="filter",
            )
        found[key] = value
    return found


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
