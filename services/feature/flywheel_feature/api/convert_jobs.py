"""Conversion of jobs and of the requests that start them: flywheel.feature.v1 to domain and back."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import json_format

from flywheel_common.names import parse_project
from flywheel_common.value import coerce
from flywheel_feature.api.convert_definitions import VIEW, plain_name
from flywheel_feature.api.errors import InvalidFilter, MissingJoinKey
from flywheel_feature.definitions.errors import UnknownField
from flywheel_feature.definitions.model import Entity
from flywheel_feature.encoding.keys import entity_keys
from flywheel_feature.encoding.wire_columns import micros_if_set
from flywheel_feature.erasure.model import EraseRequest
from flywheel_feature.ingest.materialize_job import MaterializeRequest
from flywheel_feature.jobs.model import Job
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import job_pb2
from flywheel_protos.types.v1.value_pb2 import Value

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
    progress = job.progress
    message.progress.done, message.progress.total = progress.done, progress.total
    message.progress.unit, message.progress.message = progress.unit, progress.message
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


def job_filter(text: str) -> tuple[str, str]:
    """(kind, state) of a filter such as `kind=MATERIALIZE state=RUNNING`. Raises InvalidFilter."""
    found = {"kind": "", "state": ""}
    for part in text.split():
        key, equals, value = part.partition("=")
        if not equals or key not in found:
            raise InvalidFilter(f"{text[:100]!r} is not a job filter: use kind=KIND, state=STATE or both.")
        found[key] = value
    return found["kind"], found["state"]


def to_materialize(request: pb.MaterializeViewRequest) -> MaterializeRequest:
    """Raises InvalidName, or EventTimeOutOfRange for a time of 1970-01-01."""
    project, view = plain_name(request.view, VIEW) if request.view else (parse_project(request.parent), "")
    return MaterializeRequest(
        project,
        view,
        micros_if_set(request, "start_time"),
        micros_if_set(request, "end_time"),
        request.rows_per_second,
    )


def to_erase(project: str, entity: Entity, given: Mapping[str, Value]) -> EraseRequest:
    """Raises MissingJoinKey, UnknownField or WrongType."""
    unknown = sorted(set(given) - {k.name for k in entity.join_keys})
    if unknown:
        names = ", ".join(k.name for k in entity.join_keys)
        raise UnknownField(f"{entity.name} has no join key {unknown[0]!r}; it has: {names}.")
    columns = []
    for key in entity.join_keys:
        value = coerce(given[key.name], int(key.data_type), key.name) if key.name in given else None
        if value is None:
            raise MissingJoinKey(
                f"Join key {key.name!r} of {entity.name} is missing: send all join keys of the entity.",
                key=key.name,
            )
        columns.append((key.data_type, [value]))
    return EraseRequest(project, entity.id, entity_keys(columns)[0])
