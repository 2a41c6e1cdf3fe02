"""Edge tests for models, versions and artifacts: conversion, status codes, filters and pages."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from datetime import UTC
from typing import Any, cast

import grpc
import pytest

from flywheel_common.grpc.channel import from_rpc_error
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_protos.types.v1 import tensor_pb2
from flywheel_registry.artifacts.graph import Feature
from flywheel_registry.audit.chain import AuditEntry, first_break
from flywheel_registry.fakes.checks import MemoryFeatureSets
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.server import wire
from tests.support.builders.registry import ModelClient, numbers
from tests.support.servers.registry import NO_TICKS, memory_ports, refused, registry_settings, running

PRODUCTION, STAGING = model_pb2.STAGE_PRODUCTION, model_pb2.STAGE_STAGING
FILE = model_pb2.Artifact(name="model.onnx", size_bytes=1, sha256="ab" * 32)


def tensor(name: str, data_type: str, shape: list[int], data: bytes) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(name=name, data_type=f"DATA_TYPE_{data_type}", shape=shape, data=data)


async def audit_chain(client: ModelClient) -> list[AuditEntry]:
    """Return the audit as callers read it, oldest first."""
    return [
        AuditEntry(
            model=client.model,
            sequence=e.sequence,
            at=e.at.ToDatetime(tzinfo=UTC),
            actor=e.actor,
            action=e.action,
            subject=e.subject,
            from_state=e.from_state,
            to_state=e.to_state,
            reason=e.reason,
            evidence=e.evidence,
            hash=e.hash,
        )
        for e in await client.audit()
    ]


async def test_models_are_created_read_and_updated(client: ModelClient) -> None:
    gate = model_pb2.GatePolicy(
        offline=[model_pb2.MetricThreshold(metric="auc", min=0.5)], min_evaluation_rows=100
    )
    created = await client.create(description="why", owner="ann", tags={"a": "b"}, gate_policy=gate)
    assert ("why", "ann", {"a": "b"}) == (created.description, created.owner, dict(created.tags))
    assert gate == created.gate_policy
    with refused("ALREADY_EXISTS", "MODEL_EXISTS"):
        await client.create(owner="bob")
    stub = client.stub
    assert created == (await stub.GetModel(pb.GetModelRequest(name=client.model))).model
    with refused("NOT_FOUND", "UNKNOWN_MODEL"):
        await stub.GetModel(pb.GetModelRequest(name="projects/default/models/other"))
    changed = model_pb2.Model(name=client.model, owner="bob", etag=created.etag)
    update = pb.UpdateModelRequest(model=changed)
    update.update_mask.paths.extend(["owner", "tags"])
    updated = (await stub.UpdateModel(update)).model
    assert ("bob", {}, "why") == (updated.owner, dict(updated.tags), updated.description)
    assert updated.etag != created.etag
    assert updated == (await stub.GetModel(pb.GetModelRequest(name=client.model))).model
    with refused("ABORTED", "ETAG_MISMATCH"):
        await stub.UpdateModel(update)
    without_mask = model_pb2.Model(name=client.model, description="new")
    kept = (await stub.UpdateModel(pb.UpdateModelRequest(model=without_mask))).model
    assert ("new", "bob", gate) == (kept.description, kept.owner, kept.gate_policy)
    with refused("INVALID_ARGUMENT", "INVALID_FIELD_MASK"):
        await stub.UpdateModel(pb.UpdateModelRequest(model=model_pb2.Model(name=client.model)))
    update.update_mask.paths.append("name")
    with refused("INVALID_ARGUMENT", "INVALID_FIELD_MASK"):
        await stub.UpdateModel(update)


async def test_an_update_without_a_mask_keeps_the_fields_it_does_not_set(client: ModelClient) -> None:
    gate = model_pb2.GatePolicy(min_evaluation_rows=100)
    rollout = model_pb2.RolloutPolicy(canary_percents=[10, 100])
    await client.create(gate_policy=gate, rollout_policy=rollout, owner="ann")
    changed = model_pb2.Model(name=client.model, description="new")
    updated = (await client.stub.UpdateModel(pb.UpdateModelRequest(model=changed))).model
    assert (gate, rollout) == (updated.gate_policy, updated.rollout_policy)
    assert ("new", "ann") == (updated.description, updated.owner)


async def test_models_are_listed_by_name_in_pages_with_a_filter(client: ModelClient) -> None:
    stub = client.stub
    for i, name in enumerate(["c", "a", "b"]):
        model = model_pb2.Model(tags={"n": str(i % 2), "all": "yes"})
        await stub.CreateModel(pb.CreateModelRequest(parent="projects/p", model_id=name, model=model))
    await stub.CreateModel(pb.CreateModelRequest(parent="projects/q", model_id="a"))

    async def names(size: int, filter_: str = "", token: str = "") -> tuple[list[str], str]:
        page = await stub.ListModels(
            pb.ListModelsRequest(parent="projects/p", page_size=size, filter=filter_, page_token=token)
        )
        return [m.name[-1] for m in page.models], page.next_page_token

    assert (["a", "b", "c"], "") == await names(9)
    first, more = await names(2)
    assert (["a", "b"], (["c"], "")) == (first, await names(2, token=more))
    assert (["b", "c"], "") == await names(9, "tag:n=0 AND tag:all=yes")
    assert ([], "") == await names(9, "tag:n=2")


async def test_a_refused_mutation_changes_and_sends_nothing(
    client: ModelClient, memory_store: MemoryStore
) -> None:
    await client.create()
    version = await client.version()
    before = await audit_chain(client)
    with refused("FAILED_PRECONDITION", "NO_RELEASE"):
        await client.promote(version.name, to_stage=PRODUCTION, override=True, reason="by hand")
    with refused("FAILED_PRECONDITION", "ILLEGAL_TRANSITION"):
        await client.promote(version.name, to_stage=PRODUCTION)
    with refused("INVALID_ARGUMENT", "REASON_REQUIRED"):
        await client.stub.RejectModelVersion(pb.RejectModelVersionRequest(name=version.name))
    assert (before, "NONE") == (await audit_chain(client), await client.stage(version.name))
    assert [] == memory_store.events
    assert (await client.promote(version.name)).passed
    assert ["StageChanged"] == [type(event).__name__ for event, _ in memory_store.events]


async def test_concurrent_and_refused_versions_leave_no_gaps(client: ModelClient) -> None:
    await client.create()

    async def add(bad: bool) -> int:
        parent = "not a name" if bad else ""
        declared = model_pb2.ModelVersion(artifacts=[FILE], parent_version=parent)
        request = pb.CreateModelVersionRequest(parent=client.model, model_version=declared)
        try:
            return numbers([(await client.stub.CreateModelVersion(request)).model_version])[0]
        except grpc.RpcError as error:
            return {"INVALID_NAME": 0}[from_rpc_error(error).reason]

    made = await asyncio.gather(*(add(i % 3 == 0) for i in range(12)))
    assert [0] * 4 + list(range(1, 9)) == sorted(made)
    with refused("NOT_FOUND", "UNKNOWN_MODEL_VERSION"):
        await client.stub.GetModelVersion(pb.GetModelVersionRequest(name=f"{client.model}/versions/9"))


async def test_versions_read_back_as_they_were_declared(client: ModelClient) -> None:
    await client.create()
    declared = model_pb2.ModelVersion(
        training_run="projects/p/runs/r",
        framework="torch",
        metrics={"auc": 0.75, "rows": 1000},
        feature_set="projects/p/featureSets/f/versions/1",
        training_dataset="projects/p/trainingSets/t",
        signature=model_pb2.Signature(
            inputs=[
                model_pb2.SignatureInput(name="v__a", data_type="DATA_TYPE_FLOAT64"),
                model_pb2.SignatureInput(
                    name="v__b", data_type="DATA_TYPE_STRING", vocabulary=["x", "y"], tensor="KIND"
                ),
                model_pb2.SignatureInput(
                    name="v__c", data_type="DATA_TYPE_FLOAT32_VECTOR", vector_size=2, tensor="WHERE"
                ),
            ],
            tensors=[
                model_pb2.SignatureTensor(name="INPUT", data_type="DATA_TYPE_FLOAT32", shape=[1]),
                model_pb2.SignatureTensor(name="KIND", data_type="DATA_TYPE_INT64"),
                model_pb2.SignatureTensor(name="WHERE", data_type="DATA_TYPE_FLOAT32", shape=[2, 1]),
            ],
            output=model_pb2.SignatureOutput(
                tensor="P", multiclass=model_pb2.MulticlassOutput(class_names=["low", "high"])
            ),
        ),
        artifacts=[FILE, model_pb2.Artifact(name="weights.pt", sha256="cd" * 32)],
        golden_rows=model_pb2.GoldenRows(
            row_count=1,
            tensors=[
                tensor("INPUT", "FLOAT32", [1, 1], b"\0\0\x80?"),
                tensor("KIND", "INT64", [1], bytes(8)),
                tensor("WHERE", "FLOAT32", [1, 2, 1], b"\0\0\x80?" * 2),
            ],
            output=tensor("P", "FLOAT64", [1, 2], struct.pack("<2d", 0.25, 0.75)),
            tolerance=0.25,
        ),
        tags={"team": "ü"},
        description="ünïcode",
        parent_version=f"{client.model}/versions/1",
        cause_alert="projects/p/alerts/a",
        pipeline_run="projects/p/pipelineRuns/r",
        registered_by="pipeline",
    )
    request = pb.CreateModelVersionRequest(parent=client.model, model_version=declared)
    made = (await client.stub.CreateModelVersion(request)).model_version
    found = await client.stub.GetModelVersion(pb.GetModelVersionRequest(name=made.name))
    assert made == found.model_version
    assert made.HasField("registered_at")
    expected = model_pb2.ModelVersion()
    expected.CopyFrom(declared)
    expected.name = f"{client.model}/versions/1"
    expected.stage = model_pb2.STAGE_NONE
    expected.artifact_state = model_pb2.ARTIFACT_STATE_PENDING
    expected.registered_at.CopyFrom(made.registered_at)
    assert expected == made


async def test_versions_are_listed_newest_first_with_a_filter(client: ModelClient) -> None:
    await client.create()
    for i in range(4):
        made = await client.version(b"x", tags={"odd": str(i % 2)})
        if i > 1:
            await client.promote(made.name)

    async def listed(size: int, filter_: str = "", token: str = "") -> tuple[list[int], str]:
        page = await client.stub.ListModelVersions(
            pb.ListModelVersionsRequest(parent=client.model, page_size=size, filter=filter_, page_token=token)
        )
        return numbers(page.model_versions), page.next_page_token

    assert ([4, 3, 2, 1], "") == await listed(9)
    first, more = await listed(3)
    assert ([4, 3, 2], ([1], "")) == (first, await listed(3, token=more))
    assert ([4, 3], "") == await listed(9, "stage=STAGING")
    assert ([3], "") == await listed(9, "stage=STAGING AND tag:odd=0")
    with refused("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"):
        await listed(9, "stage=PRODUCTION", more)


async def test_the_production_version_is_the_only_one_of_its_list(client: ModelClient) -> None:
    async def listed(parent: str = client.model, **fields: Any) -> list[int]:
        request = pb.ListModelVersionsRequest(parent=parent, **{"filter": "stage=PRODUCTION", **fields})
        page = await client.stub.ListModelVersions(request)
        assert page.next_page_token == ""
        return numbers(page.model_versions)

    with refused("NOT_FOUND", "UNKNOWN_MODEL"):
        await listed()
    await client.create()
    assert [] == await listed()
    await client.champion()
    assert [1] == await listed()
    version, _ = await client.staged("second")
    await client.promote(version.name, to_stage=PRODUCTION, override=True, reason="by hand")
    assert [2] == await listed(page_size=1)
    assert [2] == await listed(with_golden_rows=True)
    assert [] == await listed(filter="stage=PRODUCTION AND tag:team=none")
    with refused("INVALID_ARGUMENT", "INVALID_PAGE_SIZE"):
        await listed(page_size=-1)


async def test_a_stage_change_records_who_made_it_and_when(client: ModelClient) -> None:
    await client.create()
    version = await client.version()
    promoted = (await client.promote(version.name)).model_version
    assert STAGING == promoted.stage
    assert promoted.promoted_by and promoted.HasField("promoted_at")
    found = await client.stub.GetModelVersion(pb.GetModelVersionRequest(name=version.name))
    assert promoted == found.model_version
    reject = pb.RejectModelVersionRequest(name=version.name, reason="worse")
    await client.stub.RejectModelVersion(reject)
    for again in (client.stub.RejectModelVersion(reject), client.promote(version.name)):
        with refused("FAILED_PRECONDITION", "ILLEGAL_TRANSITION"):
            await again
    assert "REJECTED" == await client.stage(version.name)


async def test_illegal_transitions_name_the_legal_ones(client: ModelClient) -> None:
    await client.create()
    champion, _ = await client.champion()
    with refused("FAILED_PRECONDITION", "ILLEGAL_TRANSITION") as error:
        await client.stub.RejectModelVersion(pb.RejectModelVersionRequest(name=champion.name, reason="bad"))
    assert "ARCHIVED" in error.message
    other = await client.version(b"other")
    await client.stub.RejectModelVersion(pb.RejectModelVersionRequest(name=other.name, reason="bad"))
    with refused("FAILED_PRECONDITION", "ILLEGAL_TRANSITION") as error:
        await client.promote(other.name)
    assert "this stage is final" in error.message


async def test_artifacts_are_stored_under_their_declared_digest(client: ModelClient) -> None:
    await client.create()
    version = await client.version(b"right", upload=False)
    assert model_pb2.ARTIFACT_STATE_PENDING == version.artifact_state
    with refused("FAILED_PRECONDITION", "NOT_DECLARED"):
        await client.upload(version.name, b"right", artifact="other.onnx")
    with refused("DATA_LOSS", "DIGEST_MISMATCH"):
        await client.upload(version.name, b"wrong")
    for pending in (
        client.download(version.name),
        client.promote(version.name),
        client.release(version.name),
    ):
        with refused("FAILED_PRECONDITION", "ARTIFACTS_PENDING"):
            await pending
    for _ in range(2):
        ready = await client.upload(version.name, b"right")
        assert model_pb2.ARTIFACT_STATE_READY == ready.artifact_state
    assert b"right" == await client.download(version.name)
    assert ["REGISTER", "UPLOAD", "CHECK"] == [e.action for e in await client.audit()][1:]
    # Another version that declares equal bytes still needs an upload of its own.
    second = await client.version(b"right", upload=False)
    with refused("FAILED_PRECONDITION", "ARTIFACTS_PENDING"):
        await client.download(second.name)


PATHS = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc/passwd",
    "a\\b",
    "%2e%2e%2fx",
    "a#b",
    "a;b",
    "a b",
    "\u2024\u2024",
    "a\nb",
    "a\0b",
    "s3://b/k",
    "x" * 129,
]


@pytest.mark.parametrize("name", PATHS)
async def test_artifact_names_that_could_be_paths_are_rejected(client: ModelClient, name: str) -> None:
    await client.create()
    artifact = model_pb2.Artifact(name=name, size_bytes=1, sha256="a" * 64)
    request = pb.CreateModelVersionRequest(
        parent=client.model, model_version=model_pb2.ModelVersion(artifacts=[artifact])
    )
    with refused("INVALID_ARGUMENT", "INVALID_TEXT" if "\0" in name else "INVALID_ARTIFACT_NAME"):
        await client.stub.CreateModelVersion(request)
    version = await client.version()
    with refused("INVALID_ARGUMENT", "INVALID_ARTIFACT_NAME"):
        await client.upload(version.name, b"x", artifact=name)
    with refused("INVALID_ARGUMENT", "INVALID_ARTIFACT_NAME"):
        await client.download(version.name, artifact=name)


async def test_each_model_has_an_audit_chain_that_callers_can_verify(client: ModelClient) -> None:
    other = ModelClient(client.stub, "other")
    for each in (client, other):
        await each.create()
    await asyncio.gather(*(each.version(upload=False) for each in (client, other) * 5))
    for each in (client, other):
        entries = await audit_chain(each)
        assert ["CREATE"] + ["REGISTER"] * 5 == [e.action for e in entries]
        assert list(range(1, 7)) == [e.sequence for e in entries]
        assert first_break(each.model, entries) is None
        assert first_break(each.model, [*entries[:2], *entries[3:]]) is not None
    first = await client.stub.ListAuditEntries(pb.ListAuditEntriesRequest(parent=client.model, page_size=4))
    rest = await client.stub.ListAuditEntries(
        pb.ListAuditEntriesRequest(parent=client.model, page_size=4, page_token=first.next_page_token)
    )
    assert [6, 5, 4, 3, 2, 1] == [e.sequence for e in (*first.entries, *rest.entries)]


async def test_feature_uses_cover_training_and_releases_in_pages(client: ModelClient) -> None:
    sets = [f"projects/p/featureSets/{name}/versions/1" for name in ("a", "b")]
    await client.create()
    version = await client.version(feature_set=sets[0])
    await client.version(b"else", feature_set="projects/q/featureSets/a/versions/1")
    await client.release(version.name, feature_set=sets[1])
    await client.promote(version.name)

    async def uses(size: int, token: str = "") -> tuple[list[Any], str]:
        request = pb.ListFeatureUsesRequest(parent="projects/p", page_size=size, page_token=token)
        page = await client.stub.ListFeatureUses(request)
        return list(page.uses), page.next_page_token

    expected = [pb.FeatureUse(feature_set=s, model_version=version.name, stage=STAGING) for s in sets]
    assert (expected, "") == await uses(9)
    first, more = await uses(1)
    assert (expected[:1], (expected[1:], "")) == (first, await uses(1, more))


# ------------------------------------------------------------------------------------------- idempotency


def registration(client: ModelClient, request_id: str, description: str = "") -> pb.CreateModelVersionRequest:
    declared = model_pb2.ModelVersion(artifacts=[FILE], description=description)
    return pb.CreateModelVersionRequest(parent=client.model, model_version=declared, request_id=request_id)


async def test_concurrent_repeats_have_one_effect_and_one_answer(client: ModelClient) -> None:
    await client.create()
    request = registration(client, "one")
    answers = await asyncio.gather(*(client.stub.CreateModelVersion(request) for _ in range(20)))
    assert all(answer == answers[0] for answer in answers)
    assert ["CREATE", "REGISTER"] == [e.action for e in await client.audit()]


async def test_a_reused_request_id_with_another_body_changes_nothing(client: ModelClient) -> None:
    await client.create()
    first = await client.stub.CreateModelVersion(registration(client, "one"))
    before = await audit_chain(client)
    with refused("INVALID_ARGUMENT", "REQUEST_ID_REUSED"):
        await client.stub.CreateModelVersion(registration(client, "one", "another"))
    assert before == await audit_chain(client)
    assert first == await client.stub.CreateModelVersion(registration(client, "one"))
    second = await client.stub.CreateModelVersion(registration(client, ""))
    third = await client.stub.CreateModelVersion(registration(client, ""))
    assert [1, 2, 3] == numbers([a.model_version for a in (first, second, third)])
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST_ID"):
        await client.stub.CreateModelVersion(registration(client, "x" * 201))


async def test_a_failed_call_leaves_its_request_id_free(client: ModelClient) -> None:
    with refused("NOT_FOUND", "UNKNOWN_MODEL"):
        await client.stub.CreateModelVersion(registration(client, "one"))
    await client.create()
    answer = await client.stub.CreateModelVersion(registration(client, "one", "another description"))
    assert "another description" == answer.model_version.description


async def test_a_version_that_fails_its_check_is_shown_and_deleted(client: ModelClient) -> None:
    await client.create()
    request = pb.CreateModelVersionRequest(parent=client.model)
    request.model_version.artifacts.add(
        name="model.onnx", size_bytes=5, sha256=hashlib.sha256(b"hello").hexdigest()
    )
    name = (await client.stub.CreateModelVersion(request)).model_version.name
    failed = await client.upload(name, b"hello")
    assert model_pb2.ARTIFACT_STATE_INVALID == failed.artifact_state
    assert ["The version has no signature.", "The version has no golden rows."] == [*failed.check_problems]
    again = await client.stub.CheckModelVersion(pb.CheckModelVersionRequest(name=name))
    assert failed == again.model_version
    for refused_call in (client.promote(name), client.release(name)):
        with refused("FAILED_PRECONDITION", "INVALID_VERSION") as error:
            await refused_call
        assert "no golden rows" in error.message
    rejected = await client.stub.RejectModelVersion(pb.RejectModelVersionRequest(name=name, reason="bad"))
    assert model_pb2.STAGE_REJECTED == rejected.model_version.stage
    await client.stub.DeleteModelVersion(pb.DeleteModelVersionRequest(name=name, reason="not needed"))
    with refused("NOT_FOUND", "UNKNOWN_MODEL_VERSION"):
        await client.stub.GetModelVersion(pb.GetModelVersionRequest(name=name))
    actions = [(e.action, e.to_state) for e in await client.audit()][1:]
    assert [("REGISTER", "NONE"), ("UPLOAD", ""), ("CHECK", "INVALID")] == actions[:3]
    assert [("REJECT", "REJECTED"), ("DELETE", "")] == actions[3:]


async def test_versions_that_something_refers_to_are_not_deleted(client: ModelClient) -> None:
    await client.create()
    champion, _ = await client.champion()
    released = await client.version()
    await client.release(released.name)
    for version in (champion, released):
        with refused("FAILED_PRECONDITION", "VERSION_IN_USE"):
            await client.stub.DeleteModelVersion(pb.DeleteModelVersionRequest(name=version.name))


async def test_a_check_that_lost_the_feature_service_is_repeated() -> None:
    ports, clock = memory_ports(MemoryStore())
    features = cast("MemoryFeatureSets", ports.features)
    features.down = True
    async with running(wire(registry_settings(**NO_TICKS), clock, ports)) as stub:
        client = ModelClient(stub)
        await client.create()
        name = (await client.version(b"x", upload=False, feature_set="projects/p/featureSets/f")).name
        with refused("UNAVAILABLE", "UNAVAILABLE"):
            await client.upload(name, b"x")
        found = await stub.GetModelVersion(pb.GetModelVersionRequest(name=name))
        assert model_pb2.ARTIFACT_STATE_STORED == found.model_version.artifact_state
        with refused("FAILED_PRECONDITION", "VERSION_NOT_CHECKED"):
            await client.promote(name)
        features.down, features.every = False, {"view__a": Feature(5)}
        checked = (await stub.CheckModelVersion(pb.CheckModelVersionRequest(name=name))).model_version
        assert model_pb2.ARTIFACT_STATE_INVALID == checked.artifact_state
        (problem,) = checked.check_problems
        assert "Feature view__a of projects/p/featureSets/f has data type 5" in problem
        features.every = {"view__a": Feature(4)}
        checked = (await stub.CheckModelVersion(pb.CheckModelVersionRequest(name=name))).model_version
        assert (model_pb2.ARTIFACT_STATE_READY, []) == (checked.artifact_state, [*checked.check_problems])


async def test_a_release_with_another_feature_set_needs_the_inputs_in_it() -> None:
    ports, clock = memory_ports(MemoryStore())
    features = cast("MemoryFeatureSets", ports.features)
    features.sets["projects/p/featureSets/narrow"] = {"view__b": Feature(4)}
    async with running(wire(registry_settings(**NO_TICKS), clock, ports)) as stub:
        client = ModelClient(stub)
        await client.create()
        name = (await client.version(feature_set="projects/p/featureSets/f")).name
        with refused("FAILED_PRECONDITION", "FEATURE_SET_MISMATCH") as error:
            await client.release(name, feature_set="projects/p/featureSets/narrow")
        assert "has no feature view__a" in error.message
        wide = "projects/p/featureSets/wide"
        assert wide == (await client.release(name, feature_set=wide)).feature_set
        features.down = True
        with refused("UNAVAILABLE", "UNAVAILABLE"):
            await client.release(name, feature_set=wide)
        assert "projects/p/featureSets/f" == (await client.release(name)).feature_set
