"""Search over versions, tags and aliases in PostgreSQL."""

from __future__ import annotations

import math
from collections.abc import Mapping

from flywheel_common.postgres.pool import Connection
from flywheel_registry.models.alias import Alias
from flywheel_registry.models.search import Order, VersionQuery
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.store.postgres import rows
from flywheel_registry.store.postgres.statements import LISTED_COLUMNS

_CONDITIONS = """
  v.project = $1 AND v.deleted_at IS NULL
  AND ($2::text[] = '{}' OR v.model = ANY($2::text[]))
  AND ($3::text[] = '{}' OR v.stage = ANY($3::text[]))
  AND ($4::text::jsonb = '{}' OR v.tags @> $4::text::jsonb)
  AND ($5::text[] = '{}' OR ARRAY[v.training_run, v.training_dataset, v.feature_set, v.parent_version,
                                  v.cause_alert, v.pipeline_run] @> $5::text[])
  AND NOT EXISTS (
    SELECT FROM unnest($6::text[], $7::double precision[], $8::double precision[]) AS c (name, low, high)
    WHERE NOT EXISTS (
      SELECT FROM version_metric b
      WHERE b.model = v.model AND b.version = v.number AND b.name = c.name
        AND b.value BETWEEN c.low AND c.high
    )
  )
"""
_BY_METRIC = f"""
SELECT {LISTED_COLUMNS} FROM version_metric m
JOIN model_version v ON v.model = m.model AND v.number = m.version
WHERE {_CONDITIONS} AND m.project = $1 AND m.name = $13 AND m.value BETWEEN $14 AND $15
  AND (m.value, m.model, m.version)
"""
_UP = "> ($9::double precision, $10::text, $11::bigint) ORDER BY m.value, m.model, m.version LIMIT $12"
_DOWN = (
    "< ($9::double precision, $10::text, $11::bigint) "
    "ORDER BY m.value DESC, m.model DESC, m.version DESC LIMIT $12"
)
BY_METRIC = {False: _BY_METRIC + _UP, True: _BY_METRIC + _DOWN}
_FROM = f"SELECT {LISTED_COLUMNS} FROM model_version v WHERE {_CONDITIONS} "
NEWEST = (
    _FROM
    + """
  AND (v.registered_at, v.model, v.number) < (coalesce($9::timestamptz, 'infinity'), $10::text, $11::bigint)
ORDER BY v.registered_at DESC, v.model DESC, v.number DESC LIMIT $12
"""
)
OLDEST = (
    _FROM
    + """
  AND (v.registered_at, v.model, v.number) > (coalesce($9::timestamptz, '-infinity'), $10::text, $11::bigint)
ORDER BY v.registered_at, v.model, v.number LIMIT $12
"""
)
BY_TIME = {True: NEWEST, False: OLDEST}
BY_NAME = {
    False: _FROM + "AND (v.model, v.number) > ($9::text, $10::bigint) ORDER BY v.model, v.number LIMIT $11",
    True: _FROM
    + """
  AND ($9::text = '' OR (v.model, v.number) < ($9::text, $10::bigint))
ORDER BY v.model DESC, v.number DESC LIMIT $11
""",
}
CHANGE_TAGS = "UPDATE model_version SET tags = $3::text::jsonb WHERE model = $1 AND number = $2"
_ALIAS = """
SELECT a.model, a.alias, a.version, a.protected, a.set_at, a.set_by FROM model_alias a WHERE a.model = $1
"""
SELECT_ALIAS = _ALIAS + "AND a.alias = $2"
LIST_ALIASES = _ALIAS + "AND a.alias > $2 ORDER BY a.alias LIMIT $3"
PUT_ALIAS = """
INSERT INTO model_alias (model, alias, version, protected, set_at, set_by) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (model, alias) DO UPDATE SET version = $3, protected = $4, set_at = $5, set_by = $6
"""
DELETE_ALIAS = "DELETE FROM model_alias WHERE model = $1 AND alias = $2"
INFINITY = float("inf")


class PostgresSearch:
    """Part of `PostgresRecords`: search, tags and aliases. `_conn` is the transaction's connection."""

    _conn: Connection

    async def search_versions(self, query: VersionQuery, limit: int) -> list[ModelVersion]:
        # Bounds of the metric of the order limit the range of its index that is read.
        ordered = [b for b in query.metrics if b.metric == query.order_by]
        others = [b for b in query.metrics if b.metric != query.order_by]
        low = [-INFINITY if b.low is None else b.low for b in others]
        high = [INFINITY if b.high is None else b.high for b in others]
        arguments = (
            query.project,
            list(query.models),
            [stage.value for stage in query.stages],
            rows.dumps(dict(query.tags)),
            list(query.sources),
            [b.metric for b in others],
            low,
            high,
        )
        after = query.after
        place = ("", 0) if after is None else (after.model, after.number)
        if query.order_by:
            start = INFINITY if query.descending else -INFINITY
            value = start if after is None else after.value
            statement = BY_METRIC[query.descending]
            lowest = max((b.low for b in ordered if b.low is not None), default=-INFINITY)
            # NaN is the largest value of PostgreSQL: without a bound everything is found.
            highest = min((INFINITY if b.high is None else b.high for b in ordered), default=math.nan)
            found = await self._conn.fetch(
                statement, *arguments, value, *place, limit, query.order_by, lowest, highest
            )
        elif query.order is Order.NAME:
            found = await self._conn.fetch(BY_NAME[query.backwards], *arguments, *place, limit)
        else:
            time = None if after is None else after.value
            found = await self._conn.fetch(BY_TIME[query.backwards], *arguments, time, *place, limit)
        return [rows.version(row) for row in found]

    async def change_tags(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        await self._conn.execute(CHANGE_TAGS, version.model, version.number, rows.dumps(dict(tags)))

    async def alias(self, model: str, alias: str) -> Alias | None:
        row = await self._conn.fetchrow(SELECT_ALIAS, model, alias)
        return None if row is None else Alias(**row)

    async def aliases(self, model: str, after: str, limit: int) -> list[Alias]:
        return [Alias(**row) for row in await self._conn.fetch(LIST_ALIASES, model, after, limit)]

    async def put_alias(self, alias: Alias) -> None:
        a = alias
        await self._conn.execute(PUT_ALIAS, a.model, a.alias, a.version, a.protected, a.set_at, a.set_by)

    async def delete_alias(self, alias: Alias) -> None:
        await self._conn.execute(DELETE_ALIAS, alias.model, alias.alias)
