"""Batches that wait, and the lock of a partition, in PostgreSQL."""

from __future__ import annotations

import json

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.ingest.batches import PredictionColumns
from flywheel_monitor.store.postgres.home import Home

_LOCK_CLASS = 0x6D6F6E70  # "monp"
_LOCK = "SELECT pg_advisory_xact_lock($1, $2)"
_WITH_OTHERS = "SELECT pg_advisory_xact_lock($1, $2), pg_advisory_xact_lock_shared($1, -1)"
_ALONE = "SELECT pg_advisory_xact_lock($1, $2), pg_advisory_xact_lock($1, -1)"
_ADD = """
INSERT INTO waiting_batch (model, model_version, partition, rows, output, payload)
VALUES ($1, $2, $3, $4, $5, $6)
"""


async def lock_partition(conn: Connection, partition: int) -> None:
    """Until the transaction ends, no other one counts predictions or outcomes of the partition."""
    await conn.execute(_LOCK, _LOCK_CLASS, partition)


async def lock_ids(conn: Connection, home: Home) -> None:
    """`lock_partition`; if ids are not at home, all partitions too. Equal ids of two partitions are not both
    at home, so that one of their transactions sees what the other one has written."""
    await conn.execute(_WITH_OTHERS if home.partitions else _ALONE, _LOCK_CLASS, home.partition)


async def park(conn: Connection, partition: int, batch: PredictionColumns) -> None:
    """Let a batch wait."""
    output = json.dumps(batch.output.to_json())
    key = batch.key
    columns = (key.model, key.model_version, partition)
    await conn.executemany(_ADD, [(*columns, r.rows, output, r.payload) for r in batch.records])
