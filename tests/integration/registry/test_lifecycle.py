"""Registration, gates, stages and releases by real calls on real stores."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import grpc
import pytest

from flywheel_common.grpc.channel import from_rpc_error
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from tests.support.builders.registry import ModelClient
from tests.support.servers.registry import refused


async def test_a_first_release_is_promoted_on_its_offline_gate_alone_and_the_audit_says_so(
    client: ModelClient,
) -> None:
    await client.create()
    version, release = await client.staged()
    rollout = await client.start(release.name, reason="go")
    assert rollout.state == model_pb2.ROLLOUT_STATE_PROMOTED
    assert await client.stage(version.name) == "PRODUCTION"
    model = (await client.stub.GetModel(registry_pb2.GetModelRequest(name=client.model))).model
    assert (model.production_release, model.production_version) == (release.name, version.name)
    line = next(e for e in await client.audit() if e.to_state == "PRODUCTION")
    assert "no champion" in line.reason
    assert line.evidence.endswith("/evidence/1")


async def test_a_failed_gate_is_an_answer_that_names_the_numbers_and_moves_nothing(
    client: ModelClient,
) -> None:
    threshold = model_pb2.MetricThreshold(metric="auc", min=0.8)
    await client.create(gate_policy=model_pb2.GatePolicy(offline=[threshold], min_evaluation_rows=500))
    version = await client.version(auc=0.75, rows=1000)
    answer = await client.promote(version.name)
    assert not answer.passed
    assert list(answer.evidence.findings) == [
        "passed: evaluation rows: 1000, at least 500 needed",
        "FAILED: auc: 0.75, must be at least 0.8",
    ]
    assert await client.stage(version.name) == "NONE"
    stored = await client.stub.GetEvidence(registry_pb2.GetEvidenceRequest(name=answer.evidence.name))
    assert stored.evidence == answer.evidence


async def test_an_override_needs_a_reason_and_leaves_its_mark(client: ModelClient) -> None:
    threshold = model_pb2.MetricThreshold(metric="auc", min=0.8)
    await client.create(gate_policy=model_pb2.GatePolicy(offline=[threshold]))
    version = await client.version(auc=0.75)
    with refused("INVALID_ARGUMENT", "REASON_REQUIRED"):
        await client.promote(version.name, override=True)
    answer = await client.promote(version.name, override=True, reason="known good")
    assert not answer.passed
    assert await client.stage(version.name) == "STAGING"
    assert [e.reason for e in await client.audit() if e.action == "OVERRIDE"] == ["override: known good"]


async def test_registered_metrics_cannot_be_talked_away_at_the_gate(client: ModelClient) -> None:
    await client.create(
        gate_policy=model_pb2.GatePolicy(offline=[model_pb2.MetricThreshold(metric="auc", min=0.8)])
    )
    version = await client.version(auc=0.75)
    with refused("INVALID_ARGUMENT", "EVIDENCE_CONFLICT"):
        await client.promote(version.name, evidence=model_pb2.Evidence(values={"auc": 0.9}))


async def test_a_delta_gate_compares_with_the_champion(client: ModelClient) -> None:
    gate = model_pb2.GatePolicy(offline=[model_pb2.MetricThreshold(metric="auc", min_delta=0.0)])
    await client.create(gate_policy=gate)
    await client.champion(b"first")
    worse = await client.version(b"second", auc=0.7)
    answer = await client.promote(worse.name)
    assert not answer.passed
    assert "0.7 - 0.75 = -0.05" in answer.evidence.findings[0]


async def test_illegal_transitions_name_the_legal_ones(client: ModelClient) -> None:
    await client.create()
    champion, _ = await client.champion()
    with refused("FAILED_PRECONDITION", "ILLEGAL_TRANSITION") as error:
        await client.stub.RejectModelVersion(
            registry_pb2.RejectModelVersionRequest(name=champion.name, reason="bad")
        )
    assert "ARCHIVED" in error.message
    other = await client.version(b"other")
    await client.stub.RejectModelVersion(
        registry_pb2.RejectModelVersionRequest(name=other.name, reason="bad")
    )
    with refused("FAILED_PRECONDITION", "ILLEGAL_TRANSITION") as error:
        await client.promote(other.name)
    assert "nothing can follow" in error.message


async def test_nothing_moves_before_its_bytes_are_there(client: ModelClient) -> None:
    await client.create()
    version = await client.version(upload=False)
    assert version.artifact_state == model_pb2.ARTIFACT_STATE_PENDING
    with refused("FAILED_PRECONDITION", "ARTIFACTS_PENDING"):
        await client.promote(version.name)
    with refused("FAILED_PRECONDITION", "ARTIFACTS_PENDING"):
        await client.release(version.name)


async def test_a_hundred_racing_promotions_leave_one_champion(client: ModelClient, database: str) -> None:
    await client.create()
    versions = []
    for i in range(100):
        version = await client.version(b"same bytes", auc=0.7 + i / 1000)
        await client.release(version.name)
        versions.append(version.name)

    async def race(name: str) -> bool:
        try:
            return (await client.promote(name, to_stage=model_pb2.STAGE_PRODUCTION)).passed
        except grpc.RpcError as error:
            assert from_rpc_error(error).reason == "ILLEGAL_TRANSITION"  # noqa: PT017 - some win, the others must fail so
            return False

    won = await asyncio.gather(*(race(name) for name in versions))
    assert sum(won) == 1
    conn = await asyncpg.connect(database)
    try:
        assert await conn.fetchval("SELECT count(*) FROM model_version WHERE stage = 'PRODUCTION'") == 1
        assert await conn.fetchval("SELECT count(*) FROM serving_span WHERE until IS NULL") == 1
    finally:
        await conn.close()
    overridden = await asyncio.gather(
        *(
            client.promote(name, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="race")
            for name, is_champion in zip(versions, won, strict=True)
            if not is_champion
        )
    )
    assert len(overridden) == 99
    production = await client.stub.ListModelVersions(
        registry_pb2.ListModelVersionsRequest(parent=client.model, filter="stage=PRODUCTION")
    )
    assert len(production.model_versions) == 1
    history = await client.stub.ListServingHistory(
        registry_pb2.ListServingHistoryRequest(parent=client.model, page_size=1000)
    )
    assert len(history.spans) == 100
    assert [span.HasField("until") for span in history.spans] == [False] + [True] * 99


async def test_a_hundred_concurrent_equal_request_ids_make_one_version(client: ModelClient) -> None:
    await client.create()
    version = model_pb2.ModelVersion(
        artifacts=[model_pb2.Artifact(name="model.onnx", size_bytes=1, sha256="a" * 64)]
    )
    request = registry_pb2.CreateModelVersionRequest(
        parent=client.model, model_version=version, request_id="wf:register"
    )
    answers = await asyncio.gather(*(client.stub.CreateModelVersion(request, timeout=60) for _ in range(100)))
    assert {a.model_version.name for a in answers} == {f"{client.model}/versions/1"}
    listed = await client.stub.ListModelVersions(registry_pb2.ListModelVersionsRequest(parent=client.model))
    assert len(listed.model_versions) == 1
    assert [e.action for e in await client.audit()].count("REGISTER") == 1
    request.model_version.description = "another body"
    with refused("INVALID_ARGUMENT", "REQUEST_ID_REUSED"):
        await client.stub.CreateModelVersion(request)


async def test_updates_change_masked_fields_and_respect_etags(client: ModelClient) -> None:
    created = await client.create(description="old", owner="ops")
    changed = model_pb2.Model(name=client.model, description="new", owner="ignored", etag=created.etag)
    request = registry_pb2.UpdateModelRequest(model=changed)
    request.update_mask.paths.append("description")
    updated = (await client.stub.UpdateModel(request)).model
    assert (updated.description, updated.owner) == ("new", "ops")
    with refused("ABORTED", "ETAG_MISMATCH"):
        await client.stub.UpdateModel(request)


async def test_pages_of_versions_are_whole_and_newest_first(client: ModelClient) -> None:
    await client.create()
    for _ in range(5):
        await client.version(upload=False)
    names, token = [], ""
    while True:
        request = registry_pb2.ListModelVersionsRequest(parent=client.model, page_size=2, page_token=token)
        page = await client.stub.ListModelVersions(request)
        names += [v.name.rsplit("/", 1)[1] for v in page.model_versions]
        token = page.next_page_token
        if not token:
            break
    assert names == ["5", "4", "3", "2", "1"]


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason"),
    [
        ("GetModel", registry_pb2.GetModelRequest(name="projects/default/models/none"), "NOT_FOUND", "UNKNOWN_MODEL"),
        ("GetModel", registry_pb2.GetModelRequest(name="projects/../models/x"), "INVALID_ARGUMENT", "INVALID_NAME"),
        (
            "GetModelVersion",
            registry_pb2.GetModelVersionRequest(name="projects/default/models/late/versions/99999999999999999"),
            "NOT_FOUND", "UNKNOWN_MODEL_VERSION",
        ),
        ("GetRelease", registry_pb2.GetReleaseRequest(name="projects/default/models/late/releases/1"), "NOT_FOUND", "UNKNOWN_RELEASE"),
        ("GetRollout", registry_pb2.GetRolloutRequest(name="projects/default/models/late/rollouts/1"), "NOT_FOUND", "UNKNOWN_ROLLOUT"),
        ("GetEvidence", registry_pb2.GetEvidenceRequest(name="projects/default/models/late/evidence/1"), "NOT_FOUND", "UNKNOWN_EVIDENCE"),
        ("CreateModel", registry_pb2.CreateModelRequest(parent="projects/default", model_id="late"), "ALREADY_EXISTS", "MODEL_EXISTS"),
        (
            "CreateModel",
            registry_pb2.CreateModelRequest(parent="projects/default", model_id="m", model=model_pb2.Model(owner="a\0b")),
            "INVALID_ARGUMENT", "INVALID_TEXT",
        ),
        ("CreateModel", registry_pb2.CreateModelRequest(parent="projects/default", model_id="m", model=model_pb2.Model(
            rollout_policy=model_pb2.RolloutPolicy(canary_percents=[50, 20]))), "INVALID_ARGUMENT", "INVALID_POLICY"),
        (
            "ListModelVersions",
            registry_pb2.ListModelVersionsRequest(parent="projects/default/models/late", filter="colour=red"),
            "INVALID_ARGUMENT", "INVALID_FILTER",
        ),
        (
            "ListModelVersions",
            registry_pb2.ListModelVersionsRequest(parent="projects/default/models/late", page_token="xx"),
            "INVALID_ARGUMENT", "INVALID_PAGE_TOKEN",
        ),
        ("RollbackModel", registry_pb2.RollbackModelRequest(name="projects/default/models/late"), "FAILED_PRECONDITION", "NOTHING_TO_ROLL_BACK_TO"),
    ],
)  # fmt: skip
async def test_bad_requests_get_the_documented_status(
    client: ModelClient, method: str, request_: Any, code: str, reason: str
) -> None:
    await client.create()
    with refused(code, reason):
        await getattr(client.stub, method)(request_)


async def test_the_audit_chain_is_kept_by_the_database_and_shows_tampering(
    client: ModelClient, database: str
) -> None:
    await client.create()
    await client.champion()
    conn = await asyncpg.connect(database)
    try:
        for statement in (
            "UPDATE audit SET reason = 'x'",
            "DELETE FROM audit",
            "TRUNCATE audit",
            "UPDATE release SET version = 2",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await conn.execute(statement)
        from flywheel_common.postgres.pool import create_pool
        from flywheel_registry.api.convert_events import to_event
        from flywheel_registry.store.postgres.store import PostgresStore

        async with create_pool(database) as pool:
            store = PostgresStore(pool, to_event)
            assert await store.broken_audits() == []
            await conn.execute("ALTER TABLE audit DISABLE TRIGGER audit_written_once")
            await conn.execute("UPDATE audit SET actor = 'somebody else' WHERE sequence = 2")
            assert await store.broken_audits() == [
                f"{client.model}: entry 2 was changed after it was written"
            ]
            await conn.execute("DELETE FROM audit WHERE sequence = 2")
            assert await store.broken_audits() == [f"{client.model}: entry 2 is missing (found 3)"]
    finally:
        await conn.close()


async def test_every_method_has_a_row_in_the_permission_table(client: ModelClient) -> None:
    from flywheel_common.grpc.auth import missing_rows
    from flywheel_registry.permissions import PERMISSIONS

    assert missing_rows(client.stub.methods, PERMISSIONS) == []
    assert set(PERMISSIONS) == set(client.stub.methods)
