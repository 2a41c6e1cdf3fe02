"""Stored predictions in PostgreSQL: packs are added, and rows found by id or by event time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flywheel_common.arrays import Ints
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.ingest.answers import Known, Pair
from flywheel_monitor.ingest.batches import Role
from flywheel_monitor.store.postgres.array_text import array_text
from flywheel_monitor.store.postgres.home import Home
from flywheel_monitor.store.postgres.id_buckets import buckets_of
from flywheel_monitor.store.postgres.packs import COLUMNS, Pack, StoredPrediction
from flywheel_monitor.store.postgres.variants import Variant
from flywheel_monitor.store.postgres.versions import VersionCache
from flywheel_monitor.windows.span import Span

# Arrays of arrays must have equal lengths, hence the texts.
_ADD = f"""
WITH added AS (
    INSERT INTO prediction_pack (partition, model_id, variant_id, shadow, {", ".join(COLUMNS)})
    SELECT $1, model_id, variant_id, shadow, rows, first_us, last_us, newest_us::bigint[], buckets::bigint[],
        {", ".join(COLUMNS[5:])}
    FROM unnest($2::integer[], $3::integer[], $4::boolean[], $5::integer[], $6::bigint[], $7::bigint[],
        $8::text[], $9::text[], $10::bytea[], $11::bytea[], $12::bytea[], $13::bytea[], $14::bytea[],
        $15::bytea[], $16::bytea[], $17::bytea[], $18::bytea[])
        AS a (model_id, variant_id, shadow, {", ".join(COLUMNS)})
    RETURNING id, model_id, partition, buckets
)
INSERT INTO prediction_bucket (model_id, partition, partitions, bucket, pack)
SELECT model_id, partition, $19::smallint, unnest(buckets), id FROM added
"""
_CANDIDATES = """
SELECT DISTINCT b.model_id, b.pack FROM unnest($1::integer[], $2::bigint[]) AS k (model_id, bucket)
JOIN prediction_bucket b ON b.model_id = k.model_id AND b.bucket = k.bucket
    AND (b.partition = $3 OR b.partitions <> $4 OR $4 = 0)
"""
_IDS = "SELECT id, shadow, variant_id, ids FROM prediction_pack WHERE id = ANY($1::bigint[])"
_PACKS = "SELECT * FROM prediction_pack WHERE id = ANY($1::bigint[])"
_BETWEEN = """
SELECT * FROM prediction_pack
WHERE variant_id = ANY($1::integer[]) AND last_us >= $2 AND last_us < $3 AND first_us < $4
"""
_LABELS = """
SELECT prediction_id, value, class_name, event_time FROM label
WHERE model_id = $1 AND prediction_id = ANY($2::text[])
"""
# The packs that can have one of the $3 oldest rows: those that begin until the first time at which so many
# rows are surely as old. A pack has at least one row since $2, its last one. And the $5-th newest time.
_ENDS = """
WITH oldest AS (
    SELECT p.last_us, sum(CASE WHEN p.first_us >= $2 THEN p.rows ELSE 1 END)
        OVER (ORDER BY p.last_us ROWS UNBOUNDED PRECEDING) AS sure
    FROM unnest($1::integer[]) AS v (id), LATERAL (
        SELECT first_us, last_us, rows FROM prediction_pack WHERE variant_id = v.id AND last_us >= $2
        ORDER BY last_us LIMIT $3
    ) p
), latest AS (SELECT coalesce(min(last_us) FILTER (WHERE sure >= $3), max(last_us)) AS us FROM oldest
), newest AS MATERIALIZED (
    SELECT time FROM unnest($1::integer[]) AS v (id), LATERAL (
        SELECT newest_us FROM prediction_pack WHERE variant_id = v.id AND last_us >= $2
        ORDER BY last_us DESC LIMIT $5
    ) p, unnest(p.newest_us) AS time
    WHERE time >= $2 ORDER BY time DESC OFFSET $5 - 1 LIMIT 1
)
SELECT event_times, (SELECT time FROM newest) AS newest FROM latest, prediction_pack
WHERE variant_id = ANY($1::integer[]) AND last_us >= $2 AND last_us < (latest.us / $4 + 1) * $4
    AND first_us <= latest.us
"""
PACKS_AT_ONCE = 128
"""Packs that are written by one statement, or are in memory while rows are searched."""


async def add_packs(conn: Connection, home: Home, packs: Iterable[tuple[Any, ...]]) -> None:
    """Store packs: model id, variant id, whether of a shadow, and COLUMNS."""
    rows = [(*p[:6], array_text(p[6]), array_text(p[7]), *p[8:]) for p in packs]
    for at in range(0, len(rows), PACKS_AT_ONCE):
        columns = zip(*rows[at : at + PACKS_AT_ONCE], strict=True)
        await conn.execute(_ADD, home.partition, *map(list, columns), home.partitions)


async def stored_ids(
    conn: Connection, home: Home, models: Mapping[int, tuple[Sequence[str], Ints]]
) -> dict[tuple[int, int], set[str]]:
    """(model id, shadow variant or 0) → which of its ids are stored; `models`: ids and buckets."""
    found: dict[tuple[int, int], set[str]] = {}
    candidates = await _candidates(conn, {m: buckets for m, (_, buckets) in models.items()}, home)
    for model_id, packs in candidates.items():
        wanted = frozenset(models[model_id][0])
        async for pack in _read(conn, _IDS, packs):
            if mine := wanted.intersection(pack.ids):
                found.setdefault(
                    (model_id, pack.row["variant_id"] if pack.row["shadow"] else 0), set()
                ).update(mine)
    return found


async def find(conn: Connection, home: Home, model_id: int, ids: Collection[str]) -> list[StoredPrediction]:
    """All answers with these ids."""
    packs = (await _candidates(conn, {model_id: buckets_of(list(ids))}, home)).get(model_id, [])
    wanted = frozenset(ids)
    return [
        pack.prediction(i)
        async for pack in _read(conn, _PACKS, packs)
        for i, prediction_id in enumerate(pack.ids)
        if prediction_id in wanted
    ]


async def _candidates(conn: Connection, buckets: Mapping[int, Ints], home: Home) -> dict[int, list[int]]:
    """Model id → the packs that can have an id of one of its buckets: those of the partition, and those of
    others whose ids are not at home for the same number of partitions."""
    keys = [(model_id, b) for model_id, mine in buckets.items() for b in np.unique(mine).tolist()]
    if not keys:
        return {}
    rows = await conn.fetch(_CANDIDATES, *map(list, zip(*keys, strict=True)), *home)
    found: dict[int, list[int]] = {}
    for model_id, pack in sorted(map(tuple, rows)):
        found.setdefault(model_id, []).append(pack)
    return found


async def _read(conn: Connection, statement: str, packs: Sequence[int]) -> AsyncIterator[Pack]:
    for at in range(0, len(packs), PACKS_AT_ONCE):
        for row in await conn.fetch(statement, packs[at : at + PACKS_AT_ONCE]):
            yield Pack(row)


async def between(conn: Connection, variants: Sequence[int], span: Span, width_us: int) -> list[Pack]:
    """The packs that have rows of the variants in the span; slices are `width_us` wide."""
    end = -(-span.end_us // width_us) * width_us
    rows = await conn.fetch(_BETWEEN, variants, span.start_us, end, span.end_us)
    return [Pack(row) for row in rows]


async def ends(
    conn: Connection, variants: Sequence[int], since_us: int, n: tuple[int, int], width_us: int
) -> tuple[int | None, int | None]:
    """The n[0]-th oldest and the n[1]-th newest event time of the variants since then, None where they have
    fewer; n[1] is at most the number of times in `newest_us` of a pack."""
    packs = await conn.fetch(_ENDS, variants, since_us, n[0], width_us, n[1])
    if not packs:
        return None, None
    times: Ints = np.sort(np.concatenate([Pack(p).event_times for p in packs]))
    times = times[times >= since_us]
    return int(times[n[0] - 1]) if len(times) >= n[0] else None, packs[0]["newest"]


async def labels_of(conn: Connection, model_id: int, ids: Sequence[str]) -> dict[str, Known]:
    """The labels of predictions, without their times."""
    rows = await conn.fetch(_LABELS, model_id, ids)
    return {r["prediction_id"]: Known(r["value"], r["class_name"]) for r in rows}


async def pairs_of(
    versions: VersionCache, answers: Sequence[StoredPrediction], labels: Mapping[str, Known]
) -> list[tuple[Variant, StoredPrediction, Pair]]:
    """The pairs of champion and shadow among answers: the variant of the shadow, its answer, and both."""
    variants = {s.variant_id: await versions.of_variant(s.variant_id) for s in answers}
    champions = {
        s.id: s for s in answers if not s.shadow and variants[s.variant_id].key.role == Role.CHAMPION
    }
    found: list[tuple[Variant, StoredPrediction, Pair]] = []
    for shadow in answers:
        champion, variant = champions.get(shadow.id), variants[shadow.variant_id]
        if shadow.shadow and champion and variant.is_shadow_of(variants[champion.variant_id]):
            pair = Pair(champion.answer, shadow.answer, labels.get(shadow.id))
            found.append((variant, shadow, pair))
    return found
