"""Conversion of training set requests and training sets from and to messages."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from google.protobuf import text_format

from flywheel_common.errors import InvalidArgument
from flywheel_feature.api.convert_jobs import job_to_proto
from flywheel_feature.api.convert_training_sets import (
    training_set_request,
    training_set_to_proto,
    with_training_set_id,
)
from flywheel_feature.definitions.model import DataType, Field
from flywheel_feature.jobs.model import Job, JobState
from flywheel_feature.offline.model import (
    ColumnProfile,
    Compute,
    FileSpine,
    JoinMode,
    SourceSpine,
    TrainingSet,
)
from flywheel_feature.offline.skew import FeatureSkew, SkewReport
from flywheel_protos.feature.v1 import feature_pb2 as pb

REQUEST_TEXT = """
parent: "projects/p" training_set_id: "winter" feature_set: "projects/p/featureSets/flights/versions/3"
spine { source { source: "projects/p/sources/landings" timestamp_field: "scheduled" label: "delay >= 15"
                 start_time { seconds: 1 } end_time { seconds: 2 nanos: 5000 } } }
"""


def request_message(**change: object) -> pb.BuildTrainingSetRequest:
    message = text_format.Parse(REQUEST_TEXT, pb.BuildTrainingSetRequest())
    for name, value in change.items():
        setattr(message, name, value)
    return message


def test_a_request_is_converted_field_by_field() -> None:
    request = training_set_request(request_message())
    assert ("p", "winter", "flights", 3) == (
        request.project,
        request.training_set_id,
        request.feature_set,
        request.feature_set_version,
    )
    assert SourceSpine("landings", "scheduled", "delay >= 15", 1_000_000, 2_000_005) == request.spine
    assert JoinMode.POINT_IN_TIME == request.mode
    assert (False, Compute.BY_SIZE) == (request.short_feature_names, request.compute)
    changed = training_set_request(request_message(short_feature_names=True, compute=2))
    assert (True, Compute.RAY) == (changed.short_feature_names, changed.compute)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parent": "default"}, "INVALID_NAME"),
        ({"compute": 9}, "WRONG_COMPUTE"),
        ({"feature_set": "flights"}, "INVALID_NAME"),
        ({"feature_set": "projects/q/featureSets/flights"}, "INVALID_NAME"),
        ({"training_set_id": "No"}, "INVALID_ID"),
        ({"mode": 9}, "WRONG_SPINE"),
    ],
)
def test_an_invalid_request_is_rejected_with_its_reason(change: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidArgument) as rejected:
        training_set_request(request_message(**change))
    assert reason == rejected.value.reason


def test_columns_of_a_spine_are_converted() -> None:
    message = request_message()
    message.spine.source.extra_fields.extend(["id", "weight"])
    source = training_set_request(message).spine
    assert isinstance(source, SourceSpine)
    assert ("id", "weight") == source.extra_fields
    message.spine.file.uri, message.spine.file.timestamp_field = "s3://b/k", "t"
    message.spine.file.ignored_columns.append("notes")
    assert FileSpine("s3://b/k", "t", "", ("notes",)) == training_set_request(message).spine


def test_a_request_without_a_spine_is_rejected() -> None:
    message = request_message()
    message.ClearField("spine")
    with pytest.raises(InvalidArgument) as rejected:
        training_set_request(message)
    assert "WRONG_SPINE" == rejected.value.reason


def test_a_repeated_request_gets_the_same_id() -> None:
    unnamed = request_message(training_set_id="", request_id="r1")
    first, second = with_training_set_id(unnamed, "a"), with_training_set_id(unnamed, "b")
    assert first == second
    assert training_set_request(first).training_set_id.startswith("ts-")
    assert with_training_set_id(request_message(training_set_id=""), "a") != with_training_set_id(
        request_message(training_set_id=""), "b"
    )
    assert "winter" == with_training_set_id(request_message(), "a").training_set_id


def test_a_training_set_is_converted_field_by_field() -> None:
    built = TrainingSet(
        project="p",
        id="winter",
        feature_set="projects/p/featureSets/flights/versions/2",
        view_versions=("projects/p/views/weather/versions/1",),
        spine=SourceSpine("landings", "scheduled", "delay >= 15", 1, 2, 3, ("id",)),
        mode=JoinMode.NAIVE_LATEST,
        uri="s3://b/x/",
        content_hash="0123",
        row_count=7,
        label_mean=0.25,
        min_time=1_500_000,
        max_time=2_000_000,
        schema=(Field("weather__wind", DataType.FLOAT64),),
        profile=(ColumnProfile("weather__wind", DataType.FLOAT64, 7, 1, edges=(0.0,), bin_counts=(3, 3)),),
        unlabelled_count=2,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        build_seconds=1.5,
        short_feature_names=True,
        source_versions={"projects/p/sources/weather": 4},
        extra_columns=("id",),
    )
    message = training_set_to_proto(built)
    assert "projects/p/trainingSets/winter" == message.name
    assert ("projects/p/sources/landings", 3000) == (
        message.spine.source.source,
        message.spine.source.known_before.nanos,
    )
    assert message.short_feature_names
    assert (["id"], ["id"]) == (list(message.spine.source.extra_fields), list(message.extra_columns))
    assert {"projects/p/sources/weather": 4} == dict(message.source_versions)
    assert (1, 500_000_000, 1500) == (
        message.min_time.seconds,
        message.min_time.nanos,
        message.build_duration.ToMilliseconds(),
    )
    assert ([0.0], [3, 3], DataType.FLOAT64) == (
        list(message.profile[0].edges),
        list(message.profile[0].bin_counts),
        message.profile[0].data_type,
    )
    from_file = replace(built, spine=FileSpine("s3://b/k", "t", "y", ("notes",)))
    file = training_set_to_proto(from_file).spine.file
    assert ("s3://b/k", "t", "y", ["notes"]) == (
        file.uri,
        file.timestamp_field,
        file.label_field,
        list(file.ignored_columns),
    )


def test_a_skew_report_survives_json() -> None:
    report = SkewReport(2, 4, 1, (FeatureSkew("v__f", 4, 1, 3, ["p1: online 1.0, offline 2.0"]),), 2, 3)
    job = Job(
        "p",
        "j",
        "SKEW_CHECK",
        b"",
        datetime(2026, 1, 1, tzinfo=UTC),
        state=JobState.SUCCEEDED,
        result=report.to_json(),
    )
    message = job_to_proto(job).skew_report
    assert (2, 4, 1, 2, 3) == (
        message.predictions,
        message.values,
        message.mismatches,
        message.exact_predictions,
        message.not_yet_valid,
    )
    assert ("v__f", 4, 1, 3) == (
        message.features[0].feature,
        message.features[0].compared_count,
        message.features[0].mismatch_count,
        message.features[0].not_yet_valid_count,
    )
