"""`PipelineDefinitions` on PostgreSQL."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.idempotency import idempotent
from flywheel_common.postgres.pool import Connection, Pool, connection, transaction
from flywheel_trainer.pipelines.definition import Pipeline, PipelineName, PipelineVersionName, content_hash
from flywheel_trainer.pipelines.graph import Graph

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended($1, 12))"
_GET = """
SELECT * FROM pipeline_definition WHERE project = $1 AND id = $2 AND ($3::bigint IS NULL OR version = $3)
ORDER BY version DESC LIMIT 1
"""
_INSERT = """
INSERT INTO pipeline_definition (project, id, version, graph, content_hash, created_by, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
_LIST = """
SELECT DISTINCT ON (id) * FROM pipeline_definition WHERE project = $1 AND id > $2
ORDER BY id, version DESC LIMIT $3
"""


class PostgresPipelineDefinitions:
    """`PipelineDefinitions` on PostgreSQL."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def apply(
        self,
        name: PipelineName,
        graph: Graph,
        by: str,
        now: datetime,
        request_id: str = "",
        body: bytes = b"",
    ) -> tuple[Pipeline, bool]:
        async with (
            transaction(self._pool) as conn,
            idempotent(conn, "ApplyPipeline", request_id, body) as once,
        ):
            if once.replay is not None:
                version, _, created = once.replay.decode().partition("/")
                row = await conn.fetchrow(_GET, name.project, name.pipeline, int(version))
                return _pipeline(row), created == "created"
            found, created_now = await self._apply(conn, name, graph, (by, now))
            once.store(f"{found.name.version}/{'created' if created_now else ''}".encode())
            return found, created_now

    async def _apply(
        self, conn: Connection, name: PipelineName, graph: Graph, created: tuple[str, datetime]
    ) -> tuple[Pipeline, bool]:
        digest = content_hash(graph)
        await conn.execute(_LOCK, f"{name.project}/{name.pipeline}")
        newest = await conn.fetchrow(_GET, name.project, name.pipeline, None)
        if newest is not None and newest["content_hash"] == digest:
            return _pipeline(newest), False
        version = 1 if newest is None else newest["version"] + 1
        values = (name.project, name.pipeline, version, graph.to_json(), digest, *created)
        await conn.execute(_INSERT, *values)
        return _pipeline(await conn.fetchrow(_GET, name.project, name.pipeline, version)), True

    async def get(self, name: PipelineName, version: int | None = None) -> Pipeline | None:
        async with connection(self._pool) as conn:
            return await read_pipeline(conn, name, version)

    async def list(self, project: str, size: int, token: str) -> Page[Pipeline]:
        (after,) = decode_token(token, query=project) or [""]
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_LIST, project, after, size + 1)
        return cut([_pipeline(row) for row in rows], size, lambda p: (p.name.pipeline,), query=project)


async def read_pipeline(conn: Connection, name: PipelineName, version: int | None) -> Pipeline | None:
    """`PipelineDefinitions.get` in the transaction of `conn`."""
    row = await conn.fetchrow(_GET, name.project, name.pipeline, version)
    return None if row is None else _pipeline(row)


def _pipeline(row: Any) -> Pipeline:
    return Pipeline(
        PipelineVersionName(row["project"], row["id"], row["version"]),
        Graph.from_json(row["graph"]),
        row["created_by"],
        row["created_at"],
    )
