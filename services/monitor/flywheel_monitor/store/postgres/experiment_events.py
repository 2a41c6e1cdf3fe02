"""Events of experiments, written in the transaction that counts predictions and outcomes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import compress
from math import isnan

import numpy as np

from flywheel_common.arrays import Mask
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.experiments.metric import COUNT
from flywheel_monitor.ingest.answers import Known
from flywheel_monitor.ingest.batches import LABEL, PredictionColumns
from flywheel_monitor.store.postgres.home import Home
from flywheel_monitor.store.postgres.stored_predictions import find
from flywheel_monitor.store.postgres.variants import Variant

_MODELS = "SELECT DISTINCT model_id FROM experiment WHERE state = 1 AND model_id = ANY($1::integer[])"
# arrived_at is the time of the transaction, as in the pack of the prediction.
_PREDICTIONS = """
INSERT INTO experiment_event (subject, event_time, latency_ms, failed, cost, model_id, variant_id, name,
    value, arrived_at)
SELECT *, $6, $7, $8, 1, now() FROM unnest($1::text[], $2::bigint[], $3::real[], $4::boolean[], $5::real[])
"""
_EARLY = """
SELECT prediction_id, name, value FROM outcome WHERE model_id = $1 AND prediction_id = ANY($2::text[])
ORDER BY outcome_id
"""
_OUTCOMES = """
INSERT INTO experiment_event (model_id, variant_id, subject, event_time, arrived_at, name, value, latency_ms,
    failed)
SELECT $1, *, 0, false
FROM unnest($2::integer[], $3::text[], $4::bigint[], $5::timestamptz[], $6::text[], $7::float8[])
"""


async def tested_models(conn: Connection, models: Collection[int]) -> set[int]:
    """Those of the models that have a running experiment."""
    return {r["model_id"] for r in await conn.fetch(_MODELS, sorted(models))}


async def note_batches(
    conn: Connection,
    home: Home,
    batches: Sequence[PredictionColumns],
    variants: Sequence[Variant],
    kept: Sequence[Mask],
    labels: Mapping[tuple[int, str], Known],
) -> None:
    """Note the new served predictions of models with a running experiment, with the labels, by (model,
    prediction id), and the business outcomes that had arrived before them."""
    tested = await tested_models(conn, {v.version.model_id for v in variants})
    for batch, variant, new in zip(batches, variants, kept, strict=True):
        model_id = variant.version.model_id
        if model_id not in tested or batch.shadow or not new.any():
            continue
        ids = list(compress(batch.ids, new.tolist()))
        await _note_predictions(conn, variant, batch, new, ids)
        early = [(r["prediction_id"], r["name"], r["value"]) for r in await conn.fetch(_EARLY, model_id, ids)]
        early += [(i, LABEL, labels[model_id, i].value) for i in ids if (model_id, i) in labels]
        await note_outcomes(conn, home, model_id, early)


async def _note_predictions(
    conn: Connection, variant: Variant, batch: PredictionColumns, new: Mask, ids: Sequence[str]
) -> None:
    subjects = compress(batch.subjects, new.tolist())
    await conn.execute(
        _PREDICTIONS,
        [subject or i for i, subject in zip(ids, subjects, strict=True)],
        batch.event_times[new].tolist(),
        batch.latencies_ms[new].tolist(),
        batch.failed[new].tolist(),
        [None if np.isnan(c) else c for c in batch.costs[new].tolist()],
        variant.version.model_id,
        variant.id,
        COUNT,
    )


async def note_outcomes(
    conn: Connection, home: Home, model_id: int, outcomes: Iterable[tuple[str, str, float]]
) -> None:
    """Note outcomes (prediction id, name, value or its change) whose prediction is stored."""
    counted = [o for o in outcomes if o[2] and not isnan(o[2])]
    answers = await find(conn, home, model_id, {i for i, _, _ in counted}) if counted else []
    served = {s.id: s for s in answers if not s.shadow}
    rows = [
        (p.variant_id, p.subject or p.id, p.answer.event_time, p.arrived_at, name, value)
        for p, name, value in ((served[i], name, value) for i, name, value in counted if i in served)
    ]
    if rows:
        await conn.execute(_OUTCOMES, model_id, *map(list, zip(*rows, strict=True)))
