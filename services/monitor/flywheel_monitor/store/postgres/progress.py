"""The progress of models per partition: the times of their last events, and the time these have reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.windows.support import reached_time, with_recent

Stream = Literal["progress", "label_progress"]
"""The table of predictions, or of outcomes."""

_RECENT = "SELECT model_id, recent_us FROM {stream} WHERE model_id = ANY($1::integer[]) AND partition = $2"
_ADVANCE = """
INSERT INTO {stream} (model_id, partition, recent_us, reached_us) VALUES ($1, $2, $3, $4)
ON CONFLICT (model_id, partition) DO UPDATE
    SET recent_us = excluded.recent_us, reached_us = excluded.reached_us
"""
_REACHED = "SELECT model_id, partition, reached_us FROM {stream} WHERE reached_us IS NOT NULL"


async def advance(
    conn: Connection, stream: Stream, partition: int, arrived: Mapping[int, Sequence[int]]
) -> None:
    """Add event times in order of arrival, by model id. One writer at a time works on a partition."""
    arrived = {model_id: times for model_id, times in sorted(arrived.items()) if times}
    stored = await conn.fetch(_RECENT.format(stream=stream), list(arrived), partition)
    before = {r["model_id"]: r["recent_us"] for r in stored}
    for model_id, times in arrived.items():
        recent = with_recent(before.get(model_id, ()), times)
        await conn.execute(_ADVANCE.format(stream=stream), model_id, partition, recent, reached_time(recent))


async def reached(conn: Connection, stream: Stream) -> dict[int, dict[int, int]]:
    """Model id → partition → the event time that its events have reached."""
    found: dict[int, dict[int, int]] = {}
    for r in await conn.fetch(_REACHED.format(stream=stream)):
        found.setdefault(r["model_id"], {})[r["partition"]] = r["reached_us"]
    return found
