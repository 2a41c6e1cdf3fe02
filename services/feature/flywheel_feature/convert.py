"""Requests and answers: flywheel.feature.v1 ↔ domain (definitions are in convert_definitions)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from flywheel_common.columns import from_lists, from_numpy, row_count, to_numpy
from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_common.names import parse_project
from flywheel_common.value import from_python
from flywheel_feature.applied_offsets import AppliedOffsets, applied_name
from flywheel_feature.convert_definitions import VIEW, plain_name
from flywheel_feature.definitions import DataType, Field
from flywheel_feature.equal_keys import MANY, EqualTexts
from flywheel_feature.frames import Columns
from flywheel_feature.freshness import Freshness
from flywheel_feature.jobs import Job
from flywheel_feature.keys import NO_ENTITY, entity_keys
from flywheel_feature.materialization import MaterializeRequest
from flywheel_feature.online import MAXIMUM_ROWS, Lookup
from flywheel_feature.pushing import Pushed
from flywheel_feature.read_plan import Answer, ReadPlan
from flywheel_feature.row_encoding import DTYPES, WIDE
from flywheel_feature.rows import wrong_type
from flywheel_feature.validating import report_to_json
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import column_pb2, job_pb2

_WIDER = {
    (DataType.INT64, DataType.FLOAT64),
    (DataType.INT64, DataType.FLOAT32),
    (DataType.FLOAT32, DataType.FLOAT64),
    (DataType.FLOAT64, DataType.FLOAT32),
    (DataType.INT64, DataType.TIMESTAMP),
}
"""(sent, declared): numbers that are taken for one another."""
_TEXT = (0, int(DataType.STRING))
_EVERY = np.ones(MAXIMUM_ROWS, np.bool_)
_EVERY.flags.writeable = False
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DATA_TYPES = frozenset(int(t) for t in DataType)


def micros(timestamp: Timestamp) -> int:
    return timestamp.seconds * 1_000_000 + timestamp.nanos // 1000


def to_timestamp(value: int) -> Timestamp:
    return Timestamp(seconds=value // 1_000_000, nanos=value % 1_000_000 * 1000)


def read_column(column: column_pb2.Column, field: Field, rows: int) -> tuple[Any, Any]:
    """Values and mask of a column that must be of a field's type. Raises InvalidArgument WRONG_TYPE or INVALID_COLUMN."""
    declared = field.data_type
    if column.data_type == 0:
        column.data_type = int(declared)  # type: ignore[assignment]
        column.vector_size = field.vector_size
    given = int(column.data_type)
    if given != int(declared):
        sent = DataType(given) if given in _DATA_TYPES else None
        if sent is None or (sent, declared) not in _WIDER:
            raise wrong_type(field, sent.name if sent else f"type {given}")
    if rows and row_count(column) == 0 and column.WhichOneof("values") is None and not column.offsets:
        raise InvalidArgument(
            f"Column {field.name!r} has no values.", reason="INVALID_COLUMN", column=field.name
        )
    values, valid = to_numpy(column, rows)
    if given != int(declared):
        values = values.astype(DTYPES[declared])
    if declared.is_vector and values.shape[1] != field.vector_size:
        raise wrong_type(field, f"a vector of {values.shape[1]} where {field.vector_size} are declared")
    return values, valid


def read_rows(table: column_pb2.Table, fields: Sequence[Field]) -> Columns:
    """Every field of a schema out of a table. Raises InvalidArgument PARTIAL_ROW, UNKNOWN_FIELD, WRONG_TYPE, INVALID_COLUMN."""
    by_name = {c.name: c for c in table.columns}
    if len(by_name) != len(table.columns):
        raise InvalidArgument("A column is there twice.", reason="INVALID_COLUMN")
    missing = [f.name for f in fields if f.name not in by_name]
    if missing:
        raise InvalidArgument(
            f"Columns {missing} are missing: rows are written whole; send null where there is no value.",
            reason="PARTIAL_ROW",
        )
    unknown = sorted(set(by_name) - {f.name for f in fields})
    if unknown:
        raise InvalidArgument(
            f"Columns {unknown} are not in the schema, which has: {', '.join(f.name for f in fields)}.",
            reason="UNKNOWN_FIELD",
        )
    return {f.name: read_column(by_name[f.name], f, table.row_count) for f in fields}


def row_total(table: column_pb2.Table) -> int:
    """Rows of a table; taken from its first column where the sender left row_count out."""
    return table.row_count or (row_count(table.columns[0]) if table.columns else 0)


def to_lookup(request: pb.GetOnlineFeaturesRequest, plan: ReadPlan) -> Lookup:
    """Raises InvalidArgument MISSING_JOIN_KEY, MISSING_REQUEST_FIELD, WRONG_TYPE, ROW_COUNT_MISMATCH, TOO_MANY_ROWS."""
    rows = row_total(request.entities) or row_total(request.request_fields)
    if rows > MAXIMUM_ROWS:
        raise InvalidArgument(
            f"{rows} rows were asked for, at most {MAXIMUM_ROWS} are answered: split the request.",
            reason="TOO_MANY_ROWS",
        )
    sent = {c.name: c for c in request.entities.columns}
    for field in plan.join_keys:
        if field.name not in sent:
            raise InvalidArgument(
                f"Join key {field.name!r} is missing; these features need: {', '.join(k.name for k in plan.join_keys)}.",
                reason="MISSING_JOIN_KEY",
                key=field.name,
            )
    entities = [_entities(group, sent, rows) for group in plan.key_groups]
    return Lookup(
        entities, _request_fields(request, plan, rows), _as_of(request), rows, request.with_applied_offsets
    )


def _entities(keys: Sequence[Field], sent: dict[str, column_pb2.Column], rows: int) -> Sequence[bytes]:
    if len(keys) == 1 and rows >= MANY and _is_texts(sent[keys[0].name], keys[0]):
        equal = EqualTexts.of(sent[keys[0].name].strings.SerializeToString(), rows)
        if equal is not None:
            return equal
    return _encode([(k, *_read_key(sent[k.name], k, rows)) for k in keys])


def _is_texts(column: column_pb2.Column, field: Field) -> bool:
    """Whether nothing needs to be looked at but the texts themselves."""
    return (
        field.data_type == DataType.STRING
        and column.data_type in _TEXT
        and not column.validity
        and column.HasField("strings")
    )


def _read_key(column: column_pb2.Column, field: Field, rows: int) -> tuple[list[Any], Any]:
    """Values, and the mask of those that are there; no mask when all are."""
    if _is_texts(column, field):
        texts = list(column.strings.values)
        if len(texts) != rows:
            raise _mismatch(field.name, len(texts), rows)
        return texts, None
    if row_count(column) != rows:
        raise _mismatch(field.name, row_count(column), rows)
    values, valid = read_column(column, field, rows)
    return values.tolist(), None if valid.all() else valid


def _encode(columns: Sequence[tuple[Field, list[Any], Any]]) -> list[bytes]:
    masks = [valid for _, _, valid in columns if valid is not None]
    if not masks:
        return entity_keys([(f.data_type, values) for f, values, _ in columns])
    there = np.flatnonzero(np.logical_and.reduce(masks)).tolist()
    known = entity_keys([(f.data_type, [values[i] for i in there]) for f, values, _ in columns])
    encoded = [NO_ENTITY] * len(masks[0])
    for i, key in zip(there, known, strict=True):
        encoded[i] = key
    return encoded


def _request_fields(request: pb.GetOnlineFeaturesRequest, plan: ReadPlan, rows: int) -> Columns:
    if not plan.request_fields:
        return {}
    sent = {c.name: c for c in request.request_fields.columns}
    found: Columns = {}
    for field in plan.request_fields:
        column = sent.get(field.name)
        if column is None:
            raise InvalidArgument(
                f"Request field {field.name!r} is missing; these features need: {', '.join(f.name for f in plan.request_fields)}.",
                reason="MISSING_REQUEST_FIELD",
                field=field.name,
            )
        usual = _usual_numbers(column, field, rows)
        if usual is None and row_count(column) != rows:
            raise _mismatch(field.name, row_count(column), rows)
        found[field.name] = usual or read_column(column, field, rows)
    return found


def _usual_numbers(column: column_pb2.Column, field: Field, rows: int) -> tuple[Any, Any] | None:
    """Numbers of eight bytes as they are usually sent, packed and all there, as `read_column` reads them; None for any other column."""
    packed = column.packed
    if (
        len(packed) != 8 * rows
        or int(column.data_type) != int(field.data_type)
        or field.data_type not in WIDE
        or column.validity
    ):
        return None
    return np.frombuffer(packed, DTYPES[field.data_type]), _EVERY[:rows]


def _as_of(request: pb.GetOnlineFeaturesRequest) -> int:
    return micros(request.as_of) if request.HasField("as_of") else time.time_ns() // 1000


def _mismatch(name: str, has: int, rows: int) -> InvalidArgument:
    return InvalidArgument(
        f"Column {name!r} has {has} rows, the request {rows}.", reason="ROW_COUNT_MISMATCH", column=name
    )


def answer_to_proto(answer: Answer, plan: ReadPlan, layout: int) -> pb.GetOnlineFeaturesResponse:
    rows = answer.event_times.shape[1] if len(answer.event_times) else answer.statuses.shape[1]
    response = pb.GetOnlineFeaturesResponse(
        statuses=answer.statuses.tobytes(),
        view_versions=plan.view_versions,
        event_times=np.ascontiguousarray(answer.event_times, "<i8").tobytes(),
        feature_set=plan.feature_set,
    )
    if answer.applied:
        response.applied_offsets.CopyFrom(applied_table(answer.applied))
    if layout == pb.ANSWER_LAYOUT_ROWS:
        for i in range(rows):
            row = response.rows.add()
            for field, (values, valid), statuses in zip(
                plan.fields, answer.columns, answer.statuses, strict=True
            ):
                row.values[field.name].CopyFrom(
                    from_python(_readable(values[i], field.data_type) if valid[i] else None)
                )
                row.statuses[field.name] = int(statuses[i])  # type: ignore[assignment]
        return response
    response.features.row_count = rows
    response.features.columns.extend(
        to_column(field, values, valid)
        for field, (values, valid) in zip(plan.fields, answer.columns, strict=True)
    )
    return response


def applied_table(applied: Sequence[AppliedOffsets]) -> column_pb2.Table:
    """One INT64_LIST column per stream view: partition, next offset, partition, next offset …"""
    return column_pb2.Table(
        row_count=len(applied[0].bounds) - 1,
        columns=[
            column_pb2.Column(
                name=applied_name(view.view),
                data_type=int(DataType.INT64_LIST),  # type: ignore[arg-type]
                offsets=(2 * view.bounds).astype("<u4").tobytes(),
                packed=view.pairs.astype("<i8", copy=False).tobytes(),
            )
            for view in applied
        ],
    )


def _readable(value: Any, data_type: DataType) -> Any:
    if data_type == DataType.TIMESTAMP:
        return EPOCH + timedelta(microseconds=int(value))
    if data_type == DataType.TIMESTAMP_LIST:
        return [EPOCH + timedelta(microseconds=int(v)) for v in value]
    return value


def to_column(field: Field, values: Any, valid: Any) -> column_pb2.Column:
    if field.data_type.is_list:
        return from_lists(
            field.name, [v if ok else None for v, ok in zip(values, valid, strict=True)], int(field.data_type)
        )
    return from_numpy(field.name, values, valid, data_type=int(field.data_type))


_STATES = {name.removeprefix("JOB_STATE_"): number for name, number in job_pb2.JobState.items()}


def job_to_proto(job: Job) -> pb.Job:
    message = pb.Job(
        name=job.name,
        kind=job.kind,
        state=_STATES[str(job.state)],  # type: ignore[arg-type]
        error_reason=job.error_reason,
        error_message=job.error_message,
        training_set=job.training_set,
    )
    p = job.progress
    message.progress.done, message.progress.total, message.progress.unit, message.progress.message = (
        p.done,
        p.total,
        p.unit,
        p.message,
    )
    message.created_at.FromDatetime(job.created_at)
    if job.ended_at is not None:
        message.ended_at.FromDatetime(job.ended_at)
    if job.kind == "SKEW_CHECK" and job.result:
        json_format.ParseDict(dict(job.result), message.skew_report, ignore_unknown_fields=True)
    if job.kind == "ERASE" and job.result:
        json_format.ParseDict(dict(job.result), message.erase_report, ignore_unknown_fields=True)
    validation = job.result.get("validation")
    if isinstance(validation, dict):
        json_format.ParseDict(validation, message.validation_report)
    return message


def pushed_to_proto(source: str, pushed: Pushed) -> pb.PushFeaturesResponse:
    message = pb.PushFeaturesResponse(
        accepted_count=pushed.accepted,
        offsets=[
            pb.AppliedOffset(source=source, partition=p, next_offset=o)
            for p, o in sorted(pushed.next_offsets.items())
        ],
    )
    if pushed.validation.breaches:
        json_format.ParseDict(report_to_json(pushed.validation), message.validation)
    return message


def job_filter(text: str) -> tuple[str, str]:
    """(kind, state) of `kind=MATERIALIZE`, `state=RUNNING` or both, separated by a space."""
    found = {"kind": "", "state": ""}
    for part in text.split():
        key, equals, value = part.partition("=")
        if not equals or key not in found:
            raise InvalidArgument(
                f"{text[:100]!r} is no job filter: expected kind=… or state=….", reason="INVALID_FILTER"
            )
        found[key] = value
    return found["kind"], found["state"]


def to_materialize(request: pb.MaterializeViewRequest) -> MaterializeRequest:
    project, view = plain_name(request.view, VIEW) if request.view else (parse_project(request.parent), "")
    return MaterializeRequest(
        project,
        view,
        micros(request.start_time) if request.HasField("start_time") else None,
        micros(request.end_time) if request.HasField("end_time") else None,
        request.rows_per_second,
    )


def push_error(error: FlywheelError) -> pb.PushError:
    return pb.PushError(
        code=error.code.value[0], reason=error.reason, message=error.message, retryable=error.retryable
    )


def freshness_to_proto(item: Freshness) -> pb.Freshness:
    return pb.Freshness(
        name=item.name,
        watermark=to_timestamp(item.watermark) if item.watermark else None,
        applied=[
            pb.AppliedOffset(source=item.name, partition=p, next_offset=o) for p, o in item.applied.items()
        ],
        lag_events=item.lag_events,
        archived_events=item.archived_events,
        freshness_sla=convert_duration(item.freshness_sla),
    )


def convert_duration(value: int) -> Duration | None:
    return Duration(seconds=value // 1_000_000, nanos=value % 1_000_000 * 1000) if value else None
