"""Events of experiments, written in the transaction that counts predictions and outcomes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flywheel_common.postgres.pool import Connection
from flywheel_monitor.experiments.metric import COUNT
from flywheel_monitor.ingest.batches import LABEL

_MODELS = "SELECT DISTINCT model_id FROM experiment WHERE state = 1 AND model_id = ANY($1::integer[])"
_INTO = """
INSERT INTO experiment_event (model_id, variant_id, subject, event_time, arrived_at, name, value,
    latency_ms, failed, cost)
SELECT p.model_id, p.variant_id, coalesce(nullif(p.subject, ''), p.prediction_id), p.event_time, p.arrived_at,
"""
_PREDICTIONS = f"""{_INTO} $3, 1, p.latency_ms, p.failed, p.cost FROM prediction p
WHERE p.model_id = $1 AND p.prediction_id = ANY($2::text[]) AND p.shadow_variant = 0
ORDER BY p.event_time, p.prediction_id
"""
_EARLY_OUTCOMES = f"""{_INTO} o.name, o.value, 0, false, NULL
FROM outcome o JOIN prediction p USING (model_id, prediction_id)
WHERE p.model_id = $1 AND p.prediction_id = ANY($2::text[]) AND p.shadow_variant = 0
"""
_EARLY_LABELS = f"""{_INTO} $3, l.value, 0, false, NULL
FROM label l JOIN prediction p USING (model_id, prediction_id)
WHERE p.model_id = $1 AND p.prediction_id = ANY($2::text[]) AND p.shadow_variant = 0 AND l.value <> 'NaN'
"""
_OUTCOMES = f"""{_INTO} o.name, o.value, 0, false, NULL
FROM outcome o JOIN prediction p USING (model_id, prediction_id)
WHERE o.model_id = $1 AND o.outcome_id = ANY($2::text[]) AND p.shadow_variant = 0
"""
_LABELS = f"""{_INTO} $4, n.change, 0, false, NULL
FROM unnest($2::text[], $3::float8[]) AS n (prediction_id, change) JOIN prediction p USING (prediction_id)
WHERE p.model_id = $1 AND p.shadow_variant = 0 AND n.change <> 'NaN' AND n.change <> 0
"""


async def tested_models(conn: Connection, models: Collection[int]) -> set[int]:
    """Those of the models that have a running experiment."""
    return {r["model_id"] for r in await conn.fetch(_MODELS, sorted(models))}


async def note_predictions(conn: Connection, model_id: int, ids: Sequence[str]) -> None:
    """Note served predictions that were new, with the outcomes that had arrived before them."""
    await conn.execute(_PREDICTIONS, model_id, ids, COUNT)
    await conn.execute(_EARLY_OUTCOMES, model_id, ids)
    await conn.execute(_EARLY_LABELS, model_id, ids, LABEL)


async def note_outcomes(conn: Connection, model_id: int, outcome_ids: Collection[str]) -> None:
    """Note outcomes that were new."""
    await conn.execute(_OUTCOMES, model_id, list(outcome_ids))


async def note_labels(conn: Connection, model_id: int, ids: Sequence[str], changes: Sequence[float]) -> None:
    """Note new labels by their value, and corrected ones by the difference."""
    await conn.execute(_LABELS, model_id, ids, changes, LABEL)
