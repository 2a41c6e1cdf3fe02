"""Decoding of prediction and outcome events. Every value is checked here, before anything is counted or
archived."""

from __future__ import annotations

import numpy as np

from flywheel_common.arrays import Array, Floats, Ints
from flywheel_common.columns import check_table, from_table
from flywheel_common.signature import MAX_WIDTH, OutputKind
from flywheel_monitor.ingest.batches import EncodedBatch, OutcomeColumns, PredictionColumns, Role, VariantKey
from flywheel_monitor.ingest.errors import MalformedBatch
from flywheel_monitor.models.names import ModelName, VersionName
from flywheel_monitor.windows.output import Output, within_limit
from flywheel_monitor.windows.rows import Source
from flywheel_protos.events.v1 import prediction_pb2

_EARLIEST_US, _LATEST_US = -62_135_596_800_000_000, 253_402_300_799_000_000
"""The years 1 to 9999."""


def prediction_columns(
    batch: prediction_pb2.PredictionBatch, payload: bytes, arrivals: Ints | int = 0
) -> PredictionColumns:
    """The batch in columns. `payload` is its encoded form, `arrivals` the place of its record, or of the
    record of each row, among those of the transaction. Raises MalformedBatch (or INVALID_COLUMN,
    INVALID_NAME) for wrong lengths, names or values."""
    n = len(batch.prediction_ids)
    version = VersionName.parse(batch.model_version)
    if batch.model != version.model_name:
        raise _malformed(f"model {batch.model!r} is not that of version {batch.model_version!r}")
    role = int(batch.role)
    if role not in (Role.CHAMPION, Role.CHALLENGER, Role.SHADOW):
        raise _malformed("the role is not set")
    sources = _packed(batch.sources, "u1", n, "sources").astype(np.int64)
    output = _output(batch)
    outputs = _packed(batch.scores, "<f8", n * output.width, "scores").astype(np.float64)
    outputs = outputs.reshape(n, output.width)
    reasons = (
        np.array([bool(r) for r in batch.error_reasons], np.bool_)
        if batch.error_reasons
        else np.zeros(n, np.bool_)
    )
    optional = (batch.segments, batch.subjects)
    if len(reasons) != n or any(column and len(column) != n for column in optional):
        raise _malformed("error_reasons, segments and subjects must have as many entries as prediction_ids")
    if n and (not all(batch.prediction_ids) or (sources > max(Source)).any()):
        raise _malformed("an id is empty or a source is unknown")
    if batch.features.columns and batch.features.row_count != n:
        raise _malformed("features must have as many rows as prediction_ids")
    for table in (batch.entities, batch.request_fields, batch.applied_offsets):
        # Only the archive decodes these, and by then the batch is counted and cannot be rejected.
        check_table(table, n)
    return PredictionColumns(
        key=VariantKey(
            batch.model, batch.model_version, batch.release, batch.rollout, Role(role), batch.generation
        ),
        output=output,
        ids=list(batch.prediction_ids),
        event_times=_times(batch.event_times, n),
        outputs=outputs,
        scores=output.scores(outputs),
        decisions=_packed(batch.decisions, "u1", n, "decisions") != 0,
        sources=sources,
        latencies_ms=_packed(batch.latencies_ms, "<f4", n, "latencies_ms").astype(np.float64),
        costs=_costs(batch.costs, n),
        failed=reasons | (sources == Source.ERROR),
        segments=tuple(batch.segments) if batch.segments else ("",) * n,
        subjects=tuple(batch.subjects) if batch.subjects else ("",) * n,
        features=from_table(batch.features),
        records=(EncodedBatch(payload, n),),
        arrivals=np.full(n, arrivals, np.int64) if isinstance(arrivals, int) else arrivals,
    )


def outcome_columns(batch: prediction_pb2.OutcomeBatch) -> OutcomeColumns:
    """The batch in columns. Raises MalformedBatch (or INVALID_NAME)."""
    n = len(batch.prediction_ids)
    ModelName.parse(batch.model)
    values = _packed(batch.values, "<f8", n, "values").astype(np.float64)
    if (
        not batch.name
        or len(batch.outcome_ids) != n
        or not all(batch.prediction_ids)
        or not all(batch.outcome_ids)
    ):
        raise _malformed("the name or an id is empty, or outcome_ids and prediction_ids differ in number")
    if "\0" in batch.name:
        raise _malformed("the name contains a NUL character")
    if batch.class_names and len(batch.class_names) != n:
        raise _malformed("class_names must have as many entries as prediction_ids")
    classes = tuple(batch.class_names) if batch.class_names else ("",) * n
    named = np.array([bool(c) for c in classes], np.bool_)
    if not np.isfinite(values[~named]).all():
        raise _malformed("a value is not finite")
    return OutcomeColumns(
        batch.model,
        batch.name,
        list(batch.prediction_ids),
        list(batch.outcome_ids),
        _times(batch.event_times, n),
        np.where(named, np.nan, values),
        classes,
    )


def _output(batch: prediction_pb2.PredictionBatch) -> Output:
    """The output that the batch declares. Raises MalformedBatch."""
    width = batch.score_width or 1
    try:
        kind = OutputKind(int(batch.output_kind) or OutputKind.BINARY)
    except ValueError:
        raise _malformed(f"the output kind {int(batch.output_kind)} is unknown") from None
    multiclass = kind is OutputKind.MULTICLASS
    # A BINARY model may name its classes too; the monitor needs them for MULTICLASS only.
    names, classes = (tuple(batch.class_names), width) if multiclass else ((), 0)
    if len(names) != classes or len(set(names)) != classes or not all(names) or classes == 1:
        raise _malformed(f"{len(names)} class names do not fit {kind.name} scores of {width} values")
    if (kind in (OutputKind.BINARY, OutputKind.REGRESSION) and width != 1) or width > MAX_WIDTH:
        raise _malformed(f"{kind.name} scores cannot have {width} values per row")
    return Output(kind, width, names)


def _costs(packed: bytes, n: int) -> Floats:
    """[n] costs, NaN without any. Raises MalformedBatch for negative ones."""
    if not packed:
        return np.full(n, np.nan)
    costs = _packed(packed, "<f4", n, "costs").astype(np.float64)
    if (costs < 0).any():
        raise _malformed("a cost is negative")
    return np.where(within_limit(costs), costs, np.nan)


def _times(packed: bytes, n: int) -> Ints:
    times = _packed(packed, "<i8", n, "event_times").astype(np.int64)
    if n and (times.min() < _EARLIEST_US or times.max() > _LATEST_US):
        raise _malformed("an event time lies outside the years 1 to 9999")
    return times


def _packed(data: bytes, dtype: str, n: int, what: str) -> Array:
    kind = np.dtype(dtype)
    if len(data) != n * kind.itemsize:
        raise _malformed(f"{what} has {len(data)} bytes where {n} values need {n * kind.itemsize}")
    return np.frombuffer(data, kind)


def _malformed(why: str) -> MalformedBatch:
    return MalformedBatch(f"The batch is malformed: {why}.")
