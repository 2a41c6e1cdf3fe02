"""Promotion, idempotency and audit of a registry on real stores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import asyncpg
import pytest

from flywheel_common.postgres.pool import create_pool
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from flywheel_registry.api.convert_events import to_event
from flywheel_registry.config import RegistrySettings
from flywheel_registry.store.postgres.store import PostgresStore
from tests.support.builders.registry import ModelClient
from tests.support.eventually import eventually
from tests.support.peers.registry import running_gateway
from tests.support.row_counts import row_digests
from tests.support.servers.registry import NO_TICKS, refused, running_registry


async def test_the_first_release_is_promoted_when_a_gateway_has_loaded_it(client: ModelClient) -> None:
    await client.create()
    version, release = await client.staged()
    rollout = await client.start(release.name, reason="go")
    assert rollout.state == model_pb2.ROLLOUT_STATE_PENDING_LOAD
    assert await client.stage(version.name) == "STAGING"

    async def serves() -> bool:
        return await client.stage(version.name) == "PRODUCTION"

    async with running_gateway(client.stub, "g"):
        await eventually(serves, within=20)
    model = (await client.stub.GetModel(registry_pb2.GetModelRequest(name=client.model))).model
    assert (model.production_release, model.production_version) == (release.name, version.name)
    entry = next(e for e in await client.audit() if e.to_state == "PRODUCTION")
    assert entry.reason == "Loaded by all 1 live gateways."
    assert entry.evidence.endswith("/evidence/2")


async def test_a_failed_gate_is_stored_as_evidence_with_its_numbers(
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


async def test_a_hundred_concurrent_promotions_leave_one_champion(client: ModelClient, database: str) -> None:
    await client.create()
    versions = []
    for i in range(100):
        version = await client.version(auc=0.7 + i / 1000)
        await client.release(version.name)
        versions.append(version.name)

    await asyncio.gather(
        *(
            client.promote(name, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="concurrent")
            for name in versions
        )
    )
    conn = await asyncpg.connect(database)
    try:
        assert await conn.fetchval("SELECT count(*) FROM model_version WHERE stage = 'PRODUCTION'") == 1
        assert await conn.fetchval("SELECT count(*) FROM serving_span WHERE until IS NULL") == 1
    finally:
        await conn.close()
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


async def test_the_database_protects_the_audit_and_the_chain_shows_changes(
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
        async with create_pool(database) as pool:
            store = PostgresStore(pool, to_event)
            assert await store.broken_audits({}) == []
            await conn.execute("ALTER TABLE audit DISABLE TRIGGER audit_written_once")
            await conn.execute("UPDATE audit SET actor = 'another' WHERE sequence = 2")
            assert await store.broken_audits({}) == [
                f"{client.model}: entry 2 was changed after it was written"
            ]
            await conn.execute("DELETE FROM audit WHERE sequence = 2")
            assert await store.broken_audits({}) == [f"{client.model}: entry 2 is missing (found 3)"]
    finally:
        await conn.close()


async def test_a_removed_end_chain_or_evidence_is_found(client: ModelClient, database: str) -> None:
    await client.create()
    await client.champion()
    other = ModelClient(client.stub, "other")
    await other.create()
    await other.champion()
    last = (await client.audit())[-1]
    async with create_pool(database) as pool:
        store = PostgresStore(pool, to_event)
        assert await store.broken_audits({client.model: {last.sequence: last.hash}}) == []
        for table in ("audit", "evidence"):
            await pool.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_written_once")
        await pool.execute("UPDATE evidence SET passed = false WHERE model = $1", client.model)
        assert await store.broken_audits({}) == [
            f"{client.model}: evidence 1 was changed after it was written"
        ]
        await pool.execute("DELETE FROM evidence WHERE model = $1", client.model)
        assert await store.broken_audits({}) == [f"{client.model}: evidence 1 is missing"]
        await pool.execute(
            "DELETE FROM audit WHERE model = $1 AND sequence = $2", client.model, last.sequence
        )
        await pool.execute("DELETE FROM audit WHERE model = $1", other.model)
        ends = [fault for fault in await store.broken_audits({}) if "ends with entry" in fault]
        was = f"the last one was entry {last.sequence}"
        assert ends == [
            f"{client.model}: the audit ends with entry {last.sequence - 1}, {was}",
            f"{other.model}: the audit ends with entry 0, {was}",
        ]
        gone = {"projects/default/models/gone": {1: "hash"}}
        assert (await store.broken_audits(gone))[-1] == (
            "projects/default/models/gone: the model and its audit are missing"
        )


async def test_a_mutation_that_fails_at_its_last_write_is_rolled_back(
    settings: Callable[..., RegistrySettings], database: str
) -> None:
    """The outbox rejects an event too large for Kafka after the stage and the audit were written."""
    async with running_registry(settings(**NO_TICKS)) as stub:
        client = ModelClient(stub)
        await client.create()
        version = await client.version()
        before = await row_digests(database)
        too_large = registry_pb2.RejectModelVersionRequest(
            name=version.name, reason="x" * (9 << 20), request_id="one"
        )
        with refused("INVALID_ARGUMENT", "EVENT_TOO_LARGE"):
            await stub.RejectModelVersion(too_large)
        assert before == await row_digests(database)
        again = registry_pb2.RejectModelVersionRequest(name=version.name, reason="short", request_id="one")
        await stub.RejectModelVersion(again)
        assert "REJECTED" == await client.stage(version.name)
