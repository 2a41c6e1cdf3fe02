"""Edge tests for malformed and unfounded requests: each method answers the documented status and reason."""

from __future__ import annotations

from typing import Any

import pytest

from flywheel_common.grpc.auth import missing_rows
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.permissions import PERMISSIONS
from tests.support.builders.registry import ModelClient
from tests.support.servers.registry import refused

MODEL = "projects/default/models/late"
TOO_LONG = "x" * 201


def artifact(name: str = "model.onnx", size: int = 1, sha256: str = "a" * 64) -> model_pb2.Artifact:
    return model_pb2.Artifact(name=name, size_bytes=size, sha256=sha256)


def new_model(**fields: Any) -> pb.CreateModelRequest:
    return pb.CreateModelRequest(parent="projects/default", model_id="m", model=model_pb2.Model(**fields))


def new_version(**fields: Any) -> pb.CreateModelVersionRequest:
    version = model_pb2.ModelVersion(**{"artifacts": [artifact()], **fields})
    return pb.CreateModelVersionRequest(parent=MODEL, model_version=version)


def new_release(**fields: Any) -> pb.CreateReleaseRequest:
    release = model_pb2.Release(**{"model_version": f"{MODEL}/versions/1", "threshold": 0.5, **fields})
    return pb.CreateReleaseRequest(parent=MODEL, release=release)


def named(name: str, kind: Any) -> Any:
    return kind(name=f"{MODEL}/{name}")


INPUT = model_pb2.SignatureInput(name="a")
UNSORTED = model_pb2.Calibration(isotonic={"x": [1.0, 0.0], "y": [0.0, 1.0]})
WRONG_STAGE = pb.PromoteModelVersionRequest(name=f"{MODEL}/versions/1", to_stage=77)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason"),
    [
        ("GetModel", pb.GetModelRequest(name="projects/default/models/none"), "NOT_FOUND", "UNKNOWN_MODEL"),
        ("GetModel", pb.GetModelRequest(name="projects/../models/x"), "INVALID_ARGUMENT", "INVALID_NAME"),
        (
            "GetModelVersion",
            named("versions/99999999999999999", pb.GetModelVersionRequest),
            "NOT_FOUND",
            "UNKNOWN_MODEL_VERSION",
        ),
        (
            "RecordEvaluation",
            pb.RecordEvaluationRequest(name=f"{MODEL}/versions/99", values={"auc": 0.8}),
            "NOT_FOUND",
            "UNKNOWN_MODEL_VERSION",
        ),
        (
            "RecordEvaluation",
            pb.RecordEvaluationRequest(
                name=f"{MODEL}/versions/1", values={"auc": 0.8}, champion_version="late/1"
            ),
            "INVALID_ARGUMENT",
            "INVALID_NAME",
        ),
        (
            "RecordEvaluation",
            named("versions/1", pb.RecordEvaluationRequest),
            "INVALID_ARGUMENT",
            "INVALID_METRIC",
        ),
        ("GetRelease", named("releases/1", pb.GetReleaseRequest), "NOT_FOUND", "UNKNOWN_RELEASE"),
        ("GetRollout", named("rollouts/1", pb.GetRolloutRequest), "NOT_FOUND", "UNKNOWN_ROLLOUT"),
        ("GetEvidence", named("evidence/1", pb.GetEvidenceRequest), "NOT_FOUND", "UNKNOWN_EVIDENCE"),
        (
            "CreateModel",
            pb.CreateModelRequest(parent="projects/default", model_id="late"),
            "ALREADY_EXISTS",
            "MODEL_EXISTS",
        ),
        (
            "CreateModel",
            pb.CreateModelRequest(parent="projects/default", model_id="M"),
            "INVALID_ARGUMENT",
            "INVALID_ID",
        ),
        ("CreateModel", new_model(owner="a\0b"), "INVALID_ARGUMENT", "INVALID_TEXT"),
        (
            "CreateModel",
            new_model(rollout_policy=model_pb2.RolloutPolicy(canary_percents=[50, 20])),
            "INVALID_ARGUMENT",
            "INVALID_POLICY",
        ),
        ("CreateModelVersion", new_version(artifacts=[]), "INVALID_ARGUMENT", "INVALID_ARTIFACTS"),
        (
            "CreateModelVersion",
            new_version(artifacts=[artifact("a"), artifact("A")]),
            "INVALID_ARGUMENT",
            "INVALID_ARTIFACTS",
        ),
        (
            "CreateModelVersion",
            new_version(artifacts=[artifact(sha256="A" * 64)]),
            "INVALID_ARGUMENT",
            "INVALID_DIGEST",
        ),
        (
            "CreateModelVersion",
            new_version(artifacts=[artifact(size=1 << 50)]),
            "INVALID_ARGUMENT",
            "TOO_LARGE",
        ),
        (
            "CreateModelVersion",
            new_version(signature=model_pb2.Signature(inputs=[INPUT, INPUT])),
            "INVALID_ARGUMENT",
            "INVALID_SIGNATURE",
        ),
        (
            "CreateModelVersion",
            new_version(golden_rows=model_pb2.GoldenRows(row_count=1)),
            "INVALID_ARGUMENT",
            "INVALID_GOLDEN_ROWS",
        ),
        (
            "CreateModelVersion",
            new_version(metrics={"auc": float("inf")}),
            "INVALID_ARGUMENT",
            "INVALID_METRIC",
        ),
        ("PromoteModelVersion", WRONG_STAGE, "INVALID_ARGUMENT", "INVALID_STAGE"),
        ("CreateRelease", new_release(threshold=1.5), "INVALID_ARGUMENT", "INVALID_THRESHOLD"),
        ("CreateRelease", new_release(calibration=UNSORTED), "INVALID_ARGUMENT", "INVALID_CALIBRATION"),
        (
            "CreateRelease",
            new_release(fallback=model_pb2.Fallback(default_score=2)),
            "INVALID_ARGUMENT",
            "INVALID_FALLBACK",
        ),
        (
            "CreateRelease",
            new_release(calibration=model_pb2.Calibration(temperature={"temperature": 2.0})),
            "INVALID_ARGUMENT",
            "INVALID_CALIBRATION",
        ),
        ("CreateRelease", new_release(segment_keys=["A b"]), "INVALID_ARGUMENT", "INVALID_ID"),
        (
            "CheckModelVersion",
            named("versions/1", pb.CheckModelVersionRequest),
            "FAILED_PRECONDITION",
            "ARTIFACTS_PENDING",
        ),
        (
            "DeleteModelVersion",
            named("versions/2", pb.DeleteModelVersionRequest),
            "NOT_FOUND",
            "UNKNOWN_MODEL_VERSION",
        ),
        (
            "CreateRelease",
            new_release(model_version="projects/default/models/other/versions/1"),
            "INVALID_ARGUMENT",
            "WRONG_MODEL",
        ),
        (
            "StartRollout",
            pb.StartRolloutRequest(
                parent=MODEL, challenger_release="projects/default/models/other/releases/1"
            ),
            "INVALID_ARGUMENT",
            "WRONG_MODEL",
        ),
        (
            "ListModelVersions",
            pb.ListModelVersionsRequest(parent=MODEL, filter="colour=red"),
            "INVALID_ARGUMENT",
            "INVALID_FILTER",
        ),
        (
            "ListModelVersions",
            pb.ListModelVersionsRequest(parent=MODEL, page_token="xx"),
            "INVALID_ARGUMENT",
            "INVALID_PAGE_TOKEN",
        ),
        (
            "ListModelVersions",
            pb.ListModelVersionsRequest(parent=MODEL, page_size=-1),
            "INVALID_ARGUMENT",
            "INVALID_PAGE_SIZE",
        ),
        (
            "RollbackModel",
            pb.RollbackModelRequest(name=MODEL),
            "FAILED_PRECONDITION",
            "NOTHING_TO_ROLL_BACK_TO",
        ),
        (
            "RollbackModel",
            pb.RollbackModelRequest(name=MODEL, to_release="projects/default/models/other/releases/1"),
            "INVALID_ARGUMENT",
            "WRONG_MODEL",
        ),
        ("ReportServing", pb.ReportServingRequest(), "INVALID_ARGUMENT", "INVALID_ID"),
        ("ReportServing", pb.ReportServingRequest(gateway_id=TOO_LONG), "INVALID_ARGUMENT", "INVALID_ID"),
    ],
)
async def test_wrong_requests_get_the_documented_status(
    client: ModelClient, method: str, request_: Any, code: str, reason: str
) -> None:
    await client.create()
    await client.version(upload=False)
    with refused(code, reason):
        await getattr(client.stub, method)(request_)


async def test_uploads_need_a_target_first_and_data_after(client: ModelClient) -> None:
    await client.create()
    version = await client.version(upload=False)
    target = pb.UploadArtifactRequest.Target(model_version=version.name, artifact="model.onnx")
    for messages, reason in (
        ([], "TARGET_MISSING"),
        ([pb.UploadArtifactRequest(data=b"x")], "TARGET_MISSING"),
        ([pb.UploadArtifactRequest(target=target)] * 2, "TARGET_REPEATED"),
    ):
        with refused("INVALID_ARGUMENT", reason):
            await client.stub.UploadArtifact(iter(messages))


async def test_rejected_versions_cannot_be_released(client: ModelClient) -> None:
    await client.create()
    version = await client.version()
    await client.stub.RejectModelVersion(pb.RejectModelVersionRequest(name=version.name, reason="bad"))
    with refused("FAILED_PRECONDITION", "REJECTED_VERSION"):
        await client.release(version.name)


async def test_every_method_has_a_row_in_the_permission_table(client: ModelClient) -> None:
    assert missing_rows(client.stub.methods, PERMISSIONS) == []
    assert set(PERMISSIONS) == set(client.stub.methods)
