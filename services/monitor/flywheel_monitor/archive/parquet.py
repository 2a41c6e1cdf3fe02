"""The prediction log as Parquet: one table per model version and day."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flywheel_common.arrays import Array, Mask
from flywheel_common.columns import DTYPES, to_numpy
from flywheel_common.signature import OutputKind
from flywheel_monitor.ingest.batches import PredictionColumns, Role
from flywheel_monitor.ingest.decode import prediction_columns
from flywheel_monitor.windows.rows import Source
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.types.v1 import column_pb2, value_pb2

DAY_US = 86_400_000_000
_TIME = pa.timestamp("us", tz="UTC")
_OBJECTS = {
    value_pb2.DATA_TYPE_STRING: pa.string(),
    value_pb2.DATA_TYPE_BYTES: pa.binary(),
    value_pb2.DATA_TYPE_INT64_LIST: pa.list_(pa.int64()),
    value_pb2.DATA_TYPE_FLOAT32_LIST: pa.list_(pa.float32()),
    value_pb2.DATA_TYPE_FLOAT64_LIST: pa.list_(pa.float64()),
    value_pb2.DATA_TYPE_STRING_LIST: pa.list_(pa.string()),
}


def batch_table(payload: bytes, kept: Mask) -> tuple[str, pa.Table]:
    """(model version, the kept rows of a batch). Columns: the fields that every prediction has, then the
    features as served (`view__feature`), `entity__<join key>`, `request__<field>` and
    `applied__<view>@<version>`, the position in the stream that the features include: a list of partition,
    next offset, partition, next offset … (null: not logged). The last column is `not_yet_valid`, the features
    with this status, separated by commas, if a row of the batch has one. Answers of several values have them
    in `scores`; `score` and `class` are derived from them (`Output.scores`)."""
    batch = prediction_pb2.PredictionBatch.FromString(payload)
    decoded = prediction_columns(batch, payload)
    n = len(decoded.ids)
    scores = pa.array(decoded.scores, from_pandas=True)
    subjects = pa.array(list(decoded.subjects), pa.string())
    columns: dict[str, Any] = {
        "prediction_id": pa.array(decoded.ids, pa.string()),
        "event_time": pa.array(decoded.event_times, _TIME),
        "model_version": _constant(batch.model_version, n),
        "release": _constant(batch.release, n),
        "feature_set": _constant(batch.feature_set, n),
        "rollout": _constant(batch.rollout, n),
        "role": _constant(decoded.key.role.name if decoded.key.role != Role.UNSPECIFIED else "", n),
        "source": pa.array([Source(s).name for s in decoded.sources.tolist()], pa.string()),
        "score": scores,
        "decision": pa.array(decoded.decisions),
        "latency_ms": pa.array(decoded.latencies_ms.astype(np.float32)),
        "subject": subjects,
        "segment": pa.array(list(decoded.segments), pa.string()),
        "cost": pa.array(decoded.costs.astype(np.float32), from_pandas=True),
    }
    if decoded.output.kind is OutputKind.MULTICLASS:
        columns["class"] = pa.array(_classes(decoded), pa.string())
    if decoded.output.width > 1:
        columns["scores"] = pa.array(list(decoded.outputs), pa.list_(pa.float64()))
    for prefix, table in (
        ("", batch.features),
        ("entity__", batch.entities),
        ("request__", batch.request_fields),
        ("applied__", batch.applied_offsets),
    ):
        for column in table.columns:
            columns[prefix + column.name] = _column(column, n)
    if len(batch.not_yet_valid) == n > 0:
        columns["not_yet_valid"] = pa.array(list(batch.not_yet_valid), pa.string())
    table = pa.table(columns)
    return batch.model_version, table if bool(kept.all()) else table.filter(pa.array(kept))


def joined(tables: Iterable[pa.Table]) -> list[pa.Table]:
    """The rows of the tables in as few tables as their types permit: a table with a column whose type does
    not fit those before it begins a new one."""
    found: list[list[pa.Table]] = []
    for table in tables:
        for group in found:
            try:
                pa.unify_schemas([group[-1].schema, table.schema], promote_options="permissive")
                group.append(pa.concat_tables([group.pop(), table], promote_options="permissive"))
                break
            except (pa.ArrowTypeError, pa.ArrowInvalid):
                continue
        else:
            found.append([table])
    return [group[0] for group in found]


def by_day(table: pa.Table) -> dict[int, pa.Table]:
    """day (since 1970) → its rows sorted by event time, then prediction id and role."""
    days = table["event_time"].cast(pa.int64()).to_numpy() // DAY_US
    found = {}
    for day in np.unique(days):
        part = table.filter(pa.array(days == day))
        found[int(day)] = part.sort_by(
            [("event_time", "ascending"), ("prediction_id", "ascending"), ("role", "ascending")]
        )
    return found


def to_parquet(table: pa.Table) -> bytes:
    """Parquet bytes; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _classes(batch: PredictionColumns) -> list[str | None]:
    """[n] predicted class, None for a row without scores."""
    known = np.isfinite(batch.scores)
    columns = np.where(known[:, None], batch.outputs, 0.0).argmax(axis=1)
    return [batch.output.class_names[c] if k else None for c, k in zip(columns, known, strict=True)]


def _constant(text: str, n: int) -> pa.Array:
    return pa.array([text] * n, pa.string())


def _column(column: column_pb2.Column, n: int) -> pa.Array:
    values, valid = to_numpy(column, n)
    if column.data_type == value_pb2.DATA_TYPE_TIMESTAMP:
        return pa.array(values, _TIME, mask=~valid)
    if values.ndim == 1 and values.dtype != object:
        return pa.array(values, pa.from_numpy_dtype(DTYPES[column.data_type]), mask=~valid)
    # The type is explicit, because rows that are all null or all empty do not determine it.
    return pa.array(_rows(values, valid), _OBJECTS.get(column.data_type))


def _rows(values: Array, valid: Mask) -> list[Any]:
    rows = [v.tolist() if isinstance(v, np.ndarray) else v for v in values]
    return [row if ok else None for row, ok in zip(rows, valid.tolist(), strict=True)]
