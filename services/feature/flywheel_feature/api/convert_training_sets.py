"""Conversion of training sets and skew checks, and the job handlers that decode their requests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from flywheel_common.errors import InvalidName
from flywheel_common.names import Pattern, check_id, parse_project
from flywheel_feature.api.convert_definitions import (
    FEATURE_SET,
    FEATURE_SET_VERSION,
    SOURCE,
    field_to_proto,
    plain_name,
    versioned_name,
)
from flywheel_feature.api.errors import WrongCompute
from flywheel_feature.definitions.errors import InvalidUri, WrongSpine
from flywheel_feature.encoding.wire_columns import micros_if_set, to_timestamp
from flywheel_feature.jobs.runner import Handler, JobContext
from flywheel_feature.offline.build import TrainingSetBuilder
from flywheel_feature.offline.model import (
    ColumnProfile,
    Compute,
    FileSpine,
    JoinMode,
    SourceSpine,
    Spine,
    TrainingSet,
    TrainingSetRequest,
)
from flywheel_feature.offline.skew import SkewCheck, SkewRequest
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import training_set_pb2 as ts

TRAINING_SET = Pattern("projects/{project}/trainingSets/{id}")
TRAINING_SET_JOB = "TRAINING_SET"
SKEW_JOB = "SKEW_CHECK"


def with_training_set_id(request: pb.BuildTrainingSetRequest, new_id: str) -> pb.BuildTrainingSetRequest:
    """The request with a training_set_id, chosen by the server if the caller chose none.

    The id is derived from the request_id if there is one, so that a retry names the same set.
    """
    if request.training_set_id:
        return request
    seed = f"{request.parent}/{request.request_id}" if request.request_id else new_id
    named = pb.BuildTrainingSetRequest()
    named.CopyFrom(request)
    named.training_set_id = f"ts-{hashlib.sha256(seed.encode()).hexdigest()[:20]}"
    return named


def training_set_request(request: pb.BuildTrainingSetRequest) -> TrainingSetRequest:
    """Raises InvalidName, InvalidId, WrongSpine or WrongCompute."""
    project = parse_project(request.parent)
    owner, set_id, version = versioned_name(request.feature_set, FEATURE_SET, FEATURE_SET_VERSION)
    _check_project(project, owner, request.feature_set)
    return TrainingSetRequest(
        project=project,
        training_set_id=check_id(request.training_set_id, "training_set_id"),
        feature_set=set_id,
        feature_set_version=version,
        spine=_spine(project, request.spine),
        mode=_join_mode(request.mode),
        short_feature_names=request.short_feature_names,
        compute=_compute(request.compute),
    )


def _join_mode(number: int) -> JoinMode:
    if number not in (0, *JoinMode):
        raise WrongSpine(f"{number} is not a JoinMode: use POINT_IN_TIME.", field="mode")
    return JoinMode(number or JoinMode.POINT_IN_TIME)


def _compute(number: int) -> Compute:
    if number not in tuple(Compute):
        raise WrongCompute(f"{number} is not a Compute: leave it out, or use LOCAL or RAY.", field="compute")
    return Compute(number)


def _check_project(project: str, owner: str, name: str) -> None:
    if owner != project:
        message = f"{name} belongs to another project than projects/{project}."
        raise InvalidName(message, expected=f"projects/{project}/…")


def _spine(project: str, spine: ts.Spine) -> Spine:
    match spine.WhichOneof("kind"):
        case "source":
            given = spine.source
            owner, source_id = plain_name(given.source, SOURCE)
            _check_project(project, owner, given.source)
            start, end = micros_if_set(given, "start_time"), micros_if_set(given, "end_time")
            if start is None or end is None:
                raise WrongSpine("A source spine needs start_time and end_time.")
            return SourceSpine(
                source_id,
                given.timestamp_field,
                given.label,
                start,
                end,
                micros_if_set(given, "known_before") or 0,
                tuple(given.extra_fields),
            )
        case "file":
            file = spine.file
            return FileSpine(
                file.uri,
                file.timestamp_field,
                file.label_field,
                tuple(file.ignored_columns),
                micros_if_set(file, "as_of") or 0,
            )
    raise WrongSpine("The request has no spine: set spine.source or spine.file.")


def training_set_to_proto(built: TrainingSet) -> ts.TrainingSet:
    message = ts.TrainingSet(
        name=built.name,
        feature_set=built.feature_set,
        view_versions=built.view_versions,
        spine=_spine_to_proto(built.project, built.spine),
        mode=int(built.mode),  # type: ignore[arg-type]
        uri=built.uri,
        content_hash=built.content_hash,
        row_count=built.row_count,
        label_mean=built.label_mean,
        schema=[field_to_proto(f) for f in built.schema],
        profile=[_profile_to_proto(p) for p in built.profile],
        unlabelled_count=built.unlabelled_count,
        short_feature_names=built.short_feature_names,
        source_versions=dict(built.source_versions),
        extra_columns=built.extra_columns,
        late_events=dict(built.late_events),
    )
    if built.row_count:
        message.min_time.CopyFrom(to_timestamp(built.min_time))
        message.max_time.CopyFrom(to_timestamp(built.max_time))
    message.created_at.FromDatetime(built.created_at)
    message.build_duration.FromMicroseconds(round(built.build_seconds * 1_000_000))
    return message


def _spine_to_proto(project: str, spine: Spine) -> ts.Spine:
    if isinstance(spine, FileSpine):
        file = ts.FileSpine(
            uri=spine.uri,
            timestamp_field=spine.timestamp_field,
            label_field=spine.label_field,
            ignored_columns=spine.ignored_columns,
            as_of=to_timestamp(spine.as_of) if spine.as_of else None,
        )
        return ts.Spine(file=file)
    return ts.Spine(
        source=ts.SourceSpine(
            source=SOURCE.format(project=project, id=spine.source),
            timestamp_field=spine.timestamp_field,
            label=spine.label,
            start_time=to_timestamp(spine.start),
            end_time=to_timestamp(spine.end),
            known_before=to_timestamp(spine.known_before) if spine.known_before else None,
            extra_fields=spine.extra_fields,
        )
    )


def _profile_to_proto(profile: ColumnProfile) -> ts.ColumnProfile:
    return ts.ColumnProfile(
        name=profile.name,
        data_type=int(profile.data_type),  # type: ignore[arg-type]
        count=profile.count,
        null_count=profile.null_count,
        mean=profile.mean,
        stddev=profile.stddev,
        min=profile.min,
        max=profile.max,
        edges=profile.edges,
        bin_counts=profile.bin_counts,
        categories=profile.categories,
        category_counts=profile.category_counts,
        other_count=profile.other_count,
        vector_size=profile.vector_size,
        projections=[_profile_to_proto(p) for p in profile.projections],
    )


def skew_request(request: pb.CheckSkewRequest) -> SkewRequest:
    """Raises InvalidName, InvalidUri, or EventTimeOutOfRange for a time of 1970-01-01."""
    if not request.predictions_uri.startswith("s3://"):
        raise InvalidUri("predictions_uri must be of the form s3://bucket/prefix/.")
    return SkewRequest(
        project=parse_project(request.parent),
        predictions_uri=request.predictions_uri,
        start=micros_if_set(request, "start_time"),
        end=micros_if_set(request, "end_time"),
        sample_limit=request.sample_limit,
    )


def training_set_handler(builder: TrainingSetBuilder) -> Handler:
    """Handler of TRAINING_SET jobs, whose stored request is a BuildTrainingSetRequest with its id."""

    async def handle(job: JobContext) -> Mapping[str, object]:
        built = await builder.build(
            training_set_request(pb.BuildTrainingSetRequest.FromString(job.request)),
            job,
            job.job.id,
            reached=job.current_progress.done,
        )
        return {"training_set": built.name}

    return handle


def skew_handler(check: SkewCheck) -> Handler:
    """Handler of SKEW_CHECK jobs, whose stored request is a CheckSkewRequest."""

    async def handle(job: JobContext) -> Mapping[str, object]:
        report = await check.check(skew_request(pb.CheckSkewRequest.FromString(job.request)), job)
        return report.to_json()

    return handle
