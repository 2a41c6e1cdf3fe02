"""Training sets, in PostgreSQL (port: offline.ports.TrainingSets)."""

from __future__ import annotations

from datetime import datetime

from pydantic import TypeAdapter

from flywheel_common.postgres.pool import Pool, connection
from flywheel_feature.offline.errors import TrainingSetExists
from flywheel_feature.offline.model import TrainingSet

_BODY = TypeAdapter(TrainingSet)

_INSERT = """
INSERT INTO training_set (project, id, feature_set, body, created_at) VALUES ($1, $2, $3, $4::jsonb, $5)
ON CONFLICT (project, id) DO NOTHING RETURNING id
"""
_GET = "SELECT body FROM training_set WHERE project = $1 AND id = $2"
_LIST = """
SELECT body FROM training_set
WHERE project = $1 AND ($2 = '' OR feature_set = $2 OR feature_set LIKE $2 || '/versions/%')
    AND ($3::timestamptz IS NULL OR (created_at, id) < ($3, $4)) AND position(lower($6) IN id) > 0
ORDER BY created_at DESC, id DESC LIMIT $5
"""


class PostgresTrainingSets:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(self, training_set: TrainingSet) -> None:
        body = _BODY.dump_json(training_set).decode()
        async with connection(self._pool) as conn:
            created = await conn.fetchval(
                _INSERT,
                training_set.project,
                training_set.id,
                training_set.feature_set,
                body,
                training_set.created_at,
            )
        if created is None:
            raise TrainingSetExists(
                f"{training_set.name} exists: training sets are immutable, choose another id."
            )

    async def get(self, project: str, training_set_id: str) -> TrainingSet | None:
        async with connection(self._pool) as conn:
            body = await conn.fetchval(_GET, project, training_set_id)
        return None if body is None else _BODY.validate_json(body)

    async def list(
        self,
        project: str,
        *,
        feature_set: str = "",
        text: str = "",
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[TrainingSet]:
        created_at, last_id = before or (None, "")
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_LIST, project, feature_set, created_at, last_id, limit, text)
        return [_BODY.validate_json(row["body"]) for row in rows]
