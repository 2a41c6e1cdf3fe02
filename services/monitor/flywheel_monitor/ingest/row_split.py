"""Splitting of batches: rows that PostgreSQL cannot store are separated from the other rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flywheel_common.arrays import Ints, Mask
from flywheel_common.columns import take_rows
from flywheel_protos.events.v1.prediction_pb2 import OutcomeBatch, PredictionBatch

_PREDICTION_TEXTS = ("prediction_ids", "subjects", "segments", "error_reasons", "not_yet_valid")
_PREDICTION_BYTES = {
    "event_times": 8,
    "decisions": 1,
    "sources": 1,
    "latencies_ms": 4,
    "costs": 4,
}
"""Packed field → bytes per row."""
_PREDICTION_TABLES = ("features", "entities", "request_fields", "applied_offsets")
_OUTCOME_TEXTS = ("prediction_ids", "outcome_ids", "class_names")
_OUTCOME_BYTES = {"event_times": 8, "values": 8}


def with_nul(*columns: Sequence[str]) -> Mask | None:
    """[n] bool: rows with a NUL character in one of the columns; None if there is none. Columns have n texts
    or none."""
    if not any("\0" in text for text in map("".join, columns)):
        return None
    rows = zip(*(column for column in columns if column), strict=True)
    return np.array([any("\0" in text for text in row) for row in rows], np.bool_)


def take_predictions(batch: PredictionBatch, keep: Mask) -> PredictionBatch:
    """The rows that `keep` selects, in order. The batch must be well-formed."""
    taken = PredictionBatch()
    taken.CopyFrom(batch)
    rows = np.flatnonzero(keep)
    _take(
        batch, taken, rows, _PREDICTION_TEXTS, {**_PREDICTION_BYTES, "scores": 8 * (batch.score_width or 1)}
    )
    for name in _PREDICTION_TABLES:
        if batch.HasField(name):
            getattr(taken, name).CopyFrom(take_rows(getattr(batch, name), rows))
    return taken


def take_outcomes(batch: OutcomeBatch, keep: Mask) -> OutcomeBatch:
    """The rows that `keep` selects, in order. The batch must be well-formed."""
    taken = OutcomeBatch()
    taken.CopyFrom(batch)
    _take(batch, taken, np.flatnonzero(keep), _OUTCOME_TEXTS, _OUTCOME_BYTES)
    return taken


def _take(
    batch: PredictionBatch | OutcomeBatch,
    taken: PredictionBatch | OutcomeBatch,
    rows: Ints,
    texts: Sequence[str],
    widths: dict[str, int],
) -> None:
    for name in texts:
        values = getattr(batch, name)
        taken.ClearField(name)
        getattr(taken, name).extend(values[row] for row in rows if values)
    for name, width in widths.items():
        packed = getattr(batch, name)
        if packed:
            setattr(taken, name, np.frombuffer(packed, f"V{width}")[rows].tobytes())
