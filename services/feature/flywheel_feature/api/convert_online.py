"""Conversion of lookups, pushes and freshness: flywheel.feature.v1 to domain and back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf import json_format

from flywheel_common.errors import FlywheelError
from flywheel_common.value import from_micros, from_python
from flywheel_feature.api.errors import MissingJoinKey, MissingRequestField, TooManyRows
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.encoding.frames import Columns
from flywheel_feature.encoding.keys import NO_ENTITY, entity_keys
from flywheel_feature.encoding.same_length_keys import MANY, SameLengthTexts
from flywheel_feature.encoding.wire_columns import (
    holds_texts,
    micros_if_set,
    read_request_column,
    read_texts,
    row_total,
    to_column,
    to_duration,
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

_ALL_VALID = np.ones(MAXIMUM_ROWS, np.bool_)
_ALL_VALID.flags.writeable = False


def to_lookup(request: pb.GetOnlineFeaturesRequest, plan: ReadPlan) -> Lookup:
    """Raises TooManyRows, MissingJoinKey, MissingRequestField, RowCountMismatch, WrongType, InvalidColumn."""
    rows = row_total(request.entities) or row_total(request.request_fields)
    if rows > MAXIMUM_ROWS:
        raise TooManyRows(
            f"The request has {rows} rows, but a call may have at most {MAXIMUM_ROWS}: split it."
        )
    sent = {c.name: c for c in request.entities.columns}
    for field in plan.join_keys:
        if field.name not in sent:
            raise MissingJoinKey(
                f"Join key {field.name!r} is missing; these features need: {_names(plan.join_keys)}.",
                key=field.name,
            )
    entities = [_entities(group, sent, rows) for group in plan.key_groups]
    return Lookup(
        entities,
        _request_fields(request, plan, rows),
        _as_of(request),
        rows,
        request.with_applied_offsets,
        hides_later=request.HasField("as_of"),
    )


def _names(fields: Sequence[Field]) -> str:
    return ", ".join(f.name for f in fields)


def _entities(keys: Sequence[Field], sent: dict[str, column_pb2.Column], rows: int) -> Sequence[bytes]:
    """The encoded entity of every row."""
    if len(keys) == 1 and rows >= MANY and holds_texts(sent[keys[0].name], keys[0]):
        same_length = SameLengthTexts.of(sent[keys[0].name].strings.SerializeToString(), rows)
        if same_length is not None:
            return same_length
    return _encode([(k, *_read_key(sent[k.name], k, rows)) for k in keys])


def _read_key(column: column_pb2.Column, field: Field, rows: int) -> tuple[list[Any], Any]:
    """The values of a key column, and the mask of those that are not null (None: all of them)."""
    if holds_texts(column, field):
        return read_texts(column, field, rows), None
    values, valid = read_request_column(column, field, rows)
    return values.tolist(), valid


def _encode(columns: Sequence[tuple[Field, list[Any], Any]]) -> list[bytes]:
    masks = [valid for _, _, valid in columns if valid is not None]
    if not masks:
        return entity_keys([(f.data_type, values) for f, values, _ in columns])
    present = np.flatnonzero(np.logical_and.reduce(masks)).tolist()
    keys = entity_keys([(f.data_type, [values[i] for i in present]) for f, values, _ in columns])
    encoded = [NO_ENTITY] * len(masks[0])
    for i, key in zip(present, keys, strict=True):
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
            names = _names(plan.request_fields)
            raise MissingRequestField(
                f"Request field {field.name!r} is missing; these features need: {names}.", field=field.name
            )
        values, valid = read_request_column(column, field, rows)
        found[field.name] = values, _ALL_VALID[:rows] if valid is None else valid
    return found


def _as_of(request: pb.GetOnlineFeaturesRequest) -> int:
    """The time of the read, now unless the request sets it. Raises EventTimeOutOfRange for 1970-01-01."""
    as_of = micros_if_set(request, "as_of")
    return time.time_ns() // 1000 if as_of is None else as_of


def answer_to_proto(answer: Answer, plan: ReadPlan, layout: int) -> pb.GetOnlineFeaturesResponse:
    """The response message; `AnswerEncoder` writes the same as bytes for the column layout."""
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


def _readable(value: Any, data_type: DataType) -> Any:
    """A value for people: times as datetime."""
    if data_type == DataType.TIMESTAMP:
        return from_micros(int(value))
    if data_type == DataType.TIMESTAMP_LIST:
        return [from_micros(int(v)) for v in value]
    return value


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
        waiting_since=to_timestamp(item.waiting_since) if item.waiting_since else None,
        archived_events=item.archived_events,
        freshness_sla=to_duration(item.freshness_sla),
    )
