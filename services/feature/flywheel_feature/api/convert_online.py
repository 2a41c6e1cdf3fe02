"""Requests and answers: flywheel.feature.v1 ↔ domain (definitions are in convert_definitions)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf import json_format

from flywheel_common.columns import row_count
from flywheel_common.errors import FlywheelError, InvalidArgument
from flywheel_common.value import from_python
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.encoding.frames import Columns
from flywheel_feature.encoding.keys import NO_ENTITY, entity_keys
from flywheel_feature.encoding.row_encoding import DTYPES, WIDE
from flywheel_feature.encoding.same_length_keys import MANY, EqualTexts
from flywheel_feature.encoding.wire_columns import (
    _mismatch,
    _readable,
    convert_duration,
    micros,
    read_column,
    row_total,
    to_column,
    to_timestamp,
)
from flywheel_feature.ingest.freshness import Freshness
from flywheel_feature.ingest.push import PushResult
from flywheel_feature.ingest.rule_actions import report_to_json
from flywheel_feature.online.lookup import MAXIMUM_ROWS, Lookup
from flywheel_feature.online.read_plan import Answer, ReadPlan
from flywheel_feature.windows.applied_offsets import AppliedOffsets, applied_name
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import column_pb2

"""(sent, declared): numbers that are taken for one another."""
_TEXT = (0, int(DataType.STRING))
_EVERY = np.ones(MAXIMUM_ROWS, np.bool_)
_EVERY.flags.writeable = False


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


def pushed_to_proto(source: str, pushed: PushResult) -> pb.PushFeaturesResponse:
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
