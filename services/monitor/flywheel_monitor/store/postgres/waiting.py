"""Prediction batches that wait for the reference of their version, in PostgreSQL."""

from __future__ import annotations

from flywheel_monitor.ingest.batches import PredictionColumns
from flywheel_monitor.ingest.decode import prediction_columns
from flywheel_monitor.store.postgres.ingest import IngestRows
from flywheel_monitor.store.postgres.parking import lock_partition
from flywheel_protos.events.v1 import prediction_pb2

_VERSIONS = "SELECT DISTINCT model_version FROM waiting_batch ORDER BY 1"
_OLDEST = "SELECT partition, payload FROM waiting_batch WHERE model_version = $1 ORDER BY id LIMIT 1"
_TAKE = """
DELETE FROM waiting_batch WHERE id IN (
    SELECT id FROM (
        SELECT id, row_number() OVER w AS number, sum(rows) OVER w AS total FROM (
            SELECT id, rows FROM waiting_batch WHERE model_version = $1 AND partition = $2
            ORDER BY id LIMIT $3
        ) oldest WINDOW w AS (ORDER BY id)
    ) counted WHERE number = 1 OR total <= $4
) RETURNING id, payload
"""
_WAITING = "SELECT coalesce(sum(rows), 0)::bigint FROM waiting_batch WHERE split_part(model, '/', 2) = $1"
BATCHES_AT_ONCE = 50
ROWS_AT_ONCE = 50_000
"""Waiting batches, and their rows, that are counted in one transaction; a larger batch is alone."""


class WaitingRows(IngestRows):
    """`WaitingPredictions` on the transaction's connection."""

    async def waiting_versions(self) -> list[str]:
        return [r["model_version"] for r in await self._conn.fetch(_VERSIONS)]

    async def count_waiting(self, model_version: str) -> int:
        oldest = await self._conn.fetchrow(_OLDEST, model_version)
        if oldest is None:
            return 0
        await self._versions.variant(_decoded(oldest["payload"]))
        await lock_partition(self._conn, oldest["partition"])
        taken = await self._conn.fetch(
            _TAKE, model_version, oldest["partition"], BATCHES_AT_ONCE, ROWS_AT_ONCE
        )
        batches = [_decoded(r["payload"]) for r in sorted(taken, key=lambda r: r["id"])]
        await self.add_predictions(oldest["partition"], batches)
        return len(batches)

    async def waiting_rows(self, project: str) -> int:
        return int(await self._conn.fetchval(_WAITING, project))


def _decoded(payload: bytes) -> PredictionColumns:
    return prediction_columns(prediction_pb2.PredictionBatch.FromString(payload), payload)
