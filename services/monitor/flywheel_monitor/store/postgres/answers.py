"""Stored answers in PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from flywheel_common.signature import OutputKind
from flywheel_monitor.ingest.answers import Answer, Known, Pair
from flywheel_monitor.ingest.batches import PredictionColumns

_PAIRED = """
SELECT s.prediction_id, s.variant_id,
    s.event_time, s.segment, s.score, s.source, s.decision, s.outputs,
    c.event_time AS c_event_time, c.segment AS c_segment, c.score AS c_score, c.source AS c_source,
    c.decision AS c_decision, c.outputs AS c_outputs, l.value, l.class_name
FROM prediction s
JOIN variant ts ON ts.id = s.variant_id
JOIN prediction c ON c.model_id = s.model_id AND c.prediction_id = s.prediction_id AND c.shadow_variant = 0
JOIN variant tc ON tc.id = c.variant_id AND tc.role = 1
    AND (tc.rollout = ts.rollout AND tc.generation = ts.generation OR ts.rollout LIKE '%/variants/%')
JOIN model_version vs ON vs.id = ts.model_version_id
JOIN model_version vc ON vc.id = tc.model_version_id AND vc.output -> 'kind' = vs.output -> 'kind'
    AND vc.output -> 'class_names' = vs.output -> 'class_names'
LEFT JOIN label l ON l.model_id = s.model_id AND l.prediction_id = s.prediction_id
WHERE s.shadow_variant = s.variant_id
"""
PAIRS = _PAIRED + "AND s.model_id = $1 AND s.prediction_id = ANY($2::text[])"
"""Requests of these ids that champion and shadow of a rollout have answered."""
PAIRS_BETWEEN = _PAIRED + "AND s.variant_id = $1 AND s.event_time >= $2 AND s.event_time < $3"
"""Requests that a shadow variant has answered in a range of event time, and the champion too."""


def answer_of(row: Mapping[str, Any], prefix: str = "") -> Answer:
    """The answer in the columns with this prefix."""
    outputs = row[f"{prefix}outputs"]
    return Answer(
        row[f"{prefix}event_time"],
        row[f"{prefix}segment"],
        row[f"{prefix}score"],
        row[f"{prefix}source"],
        row[f"{prefix}decision"],
        None if outputs is None else np.frombuffer(outputs, "<f8"),
    )


def pair_of(row: Mapping[str, Any]) -> Pair:
    label = None if row["value"] is None else Known(row["value"], row["class_name"])
    return Pair(answer_of(row, "c_"), answer_of(row), label)


def stored_outputs(batch: PredictionColumns) -> list[bytes | None]:
    """[n] values of the answers, for the kind whose score does not contain them."""
    if batch.output.kind is not OutputKind.MULTICLASS:
        return [None] * len(batch.ids)
    return [row.tobytes() for row in batch.outputs.astype("<f8")]
