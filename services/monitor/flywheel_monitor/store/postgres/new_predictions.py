"""Storing of predictions in PostgreSQL, each once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any

import asyncpg
import numpy as np

from flywheel_common.arrays import Mask
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.ingest.batches import PredictionColumns
from flywheel_monitor.store.postgres.answers import stored_outputs
from flywheel_monitor.store.postgres.prediction_copy import COLUMNS, copy_data
from flywheel_monitor.store.postgres.variants import Variant

_INSERT = """
INSERT INTO prediction (model_id, prediction_id, shadow_variant, variant_id, event_time, score, decision,
    failed, source, latency_ms, segment, subject, cost, outputs, partition)
SELECT *, $15 FROM unnest($1::integer[], $2::text[], $3::integer[], $4::integer[], $5::bigint[], $6::float8[],
    $7::boolean[], $8::boolean[], $9::smallint[], $10::real[], $11::text[], $12::text[], $13::real[],
    $14::bytea[])
ON CONFLICT DO NOTHING RETURNING model_id, prediction_id, shadow_variant
"""
STATEMENT_ROWS = 10_000
"""Most rows of one INSERT, so that none reaches the statement timeout on a busy machine."""


async def add_new(
    conn: Connection,
    partition: int,
    batches: Sequence[PredictionColumns],
    variants: Sequence[Variant],
) -> list[Mask]:
    """Store the rows; a mask of the new ones per batch. Of two equal rows the first to arrive is new."""
    data = copy_data(batches, variants, partition)
    with suppress(asyncpg.UniqueViolationError):
        async with conn.transaction():
            await conn.copy_to_table("prediction", source=BytesIO(data), columns=COLUMNS, format="binary")
        return [np.ones(len(b.ids), np.bool_) for b in batches]
    return await _add_missing(conn, partition, batches, variants)


async def _add_missing(
    conn: Connection,
    partition: int,
    batches: Sequence[PredictionColumns],
    variants: Sequence[Variant],
) -> list[Mask]:
    """`add_new` where some rows are stored already, or twice in these batches."""
    columns: list[list[Any]] = [[] for _ in range(14)]
    shadows = [v.id if b.shadow else 0 for b, v in zip(batches, variants, strict=True)]
    for batch, variant, shadow in zip(batches, variants, shadows, strict=True):
        n = len(batch.ids)
        for column, values in zip(
            columns,
            (
                [variant.version.model_id] * n,
                batch.ids,
                [shadow] * n,
                [variant.id] * n,
                batch.event_times.tolist(),
                batch.scores.tolist(),
                batch.decisions.tolist(),
                batch.failed.tolist(),
                batch.sources.tolist(),
                batch.latencies_ms.tolist(),
                batch.segments,
                batch.subjects,
                [None if np.isnan(c) else c for c in batch.costs.tolist()],
                stored_outputs(batch),
            ),
            strict=True,
        ):
            column.extend(values)
    order = np.argsort(np.concatenate([b.arrivals for b in batches]), kind="stable").tolist()
    ordered = [[column[i] for i in order] for column in columns]
    fresh: set[tuple[int, str, int]] = set()
    for at in range(0, len(order), STATEMENT_ROWS):
        part = [column[at : at + STATEMENT_ROWS] for column in ordered]
        fresh.update((r[0], r[1], r[2]) for r in await conn.fetch(_INSERT, *part, partition))
    new = np.zeros(len(order), np.bool_)
    for i, key in zip(order, zip(*ordered[:3], strict=True), strict=True):
        if key in fresh:
            fresh.remove(key)
            new[i] = True
    ends = np.cumsum([len(b.ids) for b in batches])
    return np.split(new, ends[:-1])
