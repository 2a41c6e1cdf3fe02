"""Approvals, webhooks and the verification of one model's audit, on a registry in memory."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from flywheel_common.postgres.transactions import Store
from flywheel_protos.registry.v1 import approval_pb2, model_pb2, registry_pb2
from flywheel_protos.registry.v1 import webhook_pb2 as pb
from flywheel_registry.api.convert_events import to_event
from flywheel_registry.audit.chain import AuditHead
from flywheel_registry.events.lifecycle import RolloutChanged, StageChanged
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.stages.transitions import Stage
from flywheel_registry.store.kafka.sent_heads import _note
from flywheel_registry.webhooks.webhook import Webhook
from tests.contract.registry.test_edge_authorization import clients, reason_for
from tests.support.builders.registry import CREATED_AT, MODEL, OTHER_MODEL, ModelClient, add_model
from tests.support.servers.registry import refused, running_memory_registry

__all__ = ["clients"]

SECRET = "0123456789abcdef"
TWO = model_pb2.GatePolicy(min_approvals=2)


# ----------------------------------------------------------------------------------------------- approvals


async def test_production_needs_approvals_by_other_people(clients: dict[str, ModelClient]) -> None:
    await clients["editor+promoter"].create(gate_policy=TWO)
    author = clients["editor+promoter"]
    version = (await author.version()).name
    release = (await author.release(version)).name

    async def approve(role: str, reason: str = "looked at the report") -> str:
        request = approval_pb2.ApproveModelVersionRequest(name=version, reason=reason)
        return await reason_for(clients[role].stub.ApproveModelVersion(request))

    assert "OWN_VERSION" == await approve("editor+promoter")
    assert "ROLE_REQUIRED" == await approve("editor")
    assert "ROLE_REQUIRED" == await approve("service")
    assert "REASON_REQUIRED" == await approve("operator", " ")
    assert ["", ""] == [await approve("operator") for _ in range(2)]
    await author.promote(version)
    start = registry_pb2.StartRolloutRequest(parent=author.model, challenger_release=release)
    with refused("FAILED_PRECONDITION", "GATE_FAILED") as error:
        await author.stub.StartRollout(start)
    assert "FAILED: approvals: 1 (the operator), at least 2 needed" in error.message
    assert "" == await approve("admin")
    listed = await author.stub.ListApprovals(approval_pb2.ListApprovalsRequest(parent=version, page_size=1))
    assert ["the operator"] == [one.approver for one in listed.approvals]
    request = approval_pb2.ListApprovalsRequest(parent=version, page_token=listed.next_page_token)
    assert ["the admin"] == [one.approver for one in (await author.stub.ListApprovals(request)).approvals]
    assert release == (await author.start(release)).challenger_release
    actions = [(e.action, e.actor) for e in await author.audit() if e.action == "APPROVE"]
    assert [("APPROVE", "the operator"), ("APPROVE", "the admin")] == actions


async def test_the_author_that_a_caller_names_cannot_approve_either(clients: dict[str, ModelClient]) -> None:
    await clients["editor"].create(gate_policy=TWO)
    declared = model_pb2.ModelVersion(registered_by="the operator")
    declared.artifacts.add(name="model.onnx", size_bytes=1, sha256="ab" * 32)
    request = registry_pb2.CreateModelVersionRequest(parent=clients["editor"].model, model_version=declared)
    name = (await clients["editor+promoter"].stub.CreateModelVersion(request)).model_version.name
    wanted = approval_pb2.ApproveModelVersionRequest(name=name, reason="fine")
    for role in ("operator", "editor+promoter"):
        assert "OWN_VERSION" == await reason_for(clients[role].stub.ApproveModelVersion(wanted))


async def test_an_override_passes_the_approval_gate_with_a_reason(client: ModelClient) -> None:
    await client.create(gate_policy=TWO)
    _, release = await client.staged()
    with refused("FAILED_PRECONDITION", "GATE_FAILED"):
        await client.start(release.name)
    with refused("INVALID_ARGUMENT", "REASON_REQUIRED"):
        await client.start(release.name, override=True)
    await client.start(release.name, override=True, reason="incident 7")
    (entry,) = [e for e in await client.audit() if e.action == "OVERRIDE"]
    assert "incident 7: FAILED: approvals: 0, at least 2 needed" == entry.reason


# ------------------------------------------------------------------------------------------------ webhooks


@pytest.fixture
async def open_client() -> AsyncIterator[ModelClient]:
    async with running_memory_registry(MemoryStore(), webhook_hosts=("hooks.example",)) as stub:
        yield ModelClient(stub)


def create(**fields: object) -> pb.CreateWebhookRequest:
    webhook = pb.Webhook(**{"url": "https://hooks.example/a", "secret": SECRET, **fields})
    return pb.CreateWebhookRequest(parent="projects/default", webhook_id="ops", webhook=webhook)


async def test_webhooks_are_created_listed_and_deleted(open_client: ModelClient) -> None:
    stub = open_client.stub
    assert [3] == (await stub.CreateWebhook(create(events=[3]))).webhook.events
    await stub.DeleteWebhook(pb.DeleteWebhookRequest(name="projects/default/webhooks/ops"))
    created = (await stub.CreateWebhook(create())).webhook
    assert ("", 2) == (created.secret, len(created.events))
    with refused("ALREADY_EXISTS", "WEBHOOK_EXISTS"):
        await stub.CreateWebhook(create())
    await open_client.create()
    version = await open_client.version()
    await open_client.promote(version.name)
    listed = await stub.ListWebhookDeliveries(pb.ListWebhookDeliveriesRequest(parent=created.name))
    (body,) = [json.loads(d.body) for d in listed.deliveries]
    assert ("STAGE_CHANGED", version.name, "NONE", "STAGING") == (
        body["event"],
        body["model_version"],
        body["from_stage"],
        body["to_stage"],
    )
    assert body["audit_hash"] == (await open_client.audit())[-1].hash
    assert [created] == list(
        (await stub.ListWebhooks(pb.ListWebhooksRequest(parent="projects/default"))).webhooks
    )
    await stub.DeleteWebhook(pb.DeleteWebhookRequest(name=created.name))
    with refused("NOT_FOUND", "UNKNOWN_WEBHOOK"):
        await stub.DeleteWebhook(pb.DeleteWebhookRequest(name=created.name))


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"url": "ftp://hooks.example/a"}, "INVALID_ARGUMENT", "INVALID_WEBHOOK"),
        ({"url": "https://"}, "INVALID_ARGUMENT", "INVALID_WEBHOOK"),
        ({"url": "https://hooks.example:x/"}, "INVALID_ARGUMENT", "INVALID_WEBHOOK"),
        ({"url": "https://me:pw@hooks.example/"}, "INVALID_ARGUMENT", "INVALID_WEBHOOK"),
        ({"url": "https://hooks.example/a b"}, "INVALID_ARGUMENT", "INVALID_WEBHOOK"),
        ({"secret": "short"}, "INVALID_ARGUMENT", "INVALID_WEBHOOK"),
        ({"model": "projects/other/models/late"}, "INVALID_ARGUMENT", "INVALID_WEBHOOK"),
        ({"events": [7]}, "INVALID_ARGUMENT", "INVALID_WEBHOOK"),
        ({"url": "https://169.254.169.254/"}, "FAILED_PRECONDITION", "WEBHOOK_HOST_NOT_ALLOWED"),
        ({"url": "https://hooks.example.evil/"}, "FAILED_PRECONDITION", "WEBHOOK_HOST_NOT_ALLOWED"),
    ],
)
async def test_an_unsafe_webhook_is_refused(
    open_client: ModelClient, fields: dict[str, object], code: str, reason: str
) -> None:
    with refused(code, reason):
        await open_client.stub.CreateWebhook(create(**fields))


def change(model: str, reason: str) -> StageChanged:
    return StageChanged(model, 1, Stage.NONE, Stage.STAGING, "ann", reason)


async def test_a_committed_change_is_told_to_webhooks_that_want_it(
    store: Store[RolloutRecords],
) -> None:
    await add_model(store)
    await add_model(store, OTHER_MODEL)
    hook = Webhook("projects/p/webhooks/a", "https://h/", SECRET, MODEL, created_at=CREATED_AT)
    rollouts = replace(hook, name="projects/p/webhooks/b", events=("ROLLOUT_CHANGED",))
    async with store.transaction() as records:
        assert await records.add_webhook(hook)
        assert not await records.add_webhook(replace(hook, url="https://other/"))
        assert await records.add_webhook(rollouts)
        assert await records.add_webhook(replace(hook, name="projects/q/webhooks/c", model=""))
        pager = replace(hook, name="projects/p/webhooks/pager", events=("ROLLOUT_ALERT",), model="")
        assert await records.add_webhook(pager)
    rolled_back = RolloutChanged(MODEL, 3, "ROLLED_BACK", 0.0, 1, 2, "errors", alert=True)
    async with store.transaction() as records:
        await records.emit(replace(rolled_back, state="CANARY", reason="began", alert=False), CREATED_AT)
        await records.emit(rolled_back, CREATED_AT)
    async with store.transaction() as records:
        (told,) = await records.deliveries(pager.name, 1 << 40, 9)
        assert ("ROLLOUT_CHANGED", "ROLLED_BACK", "errors", True) == tuple(
            json.loads(told.body)[key] for key in ("event", "state", "reason", "alert")
        )
        assert 2 == len(await records.deliveries(rollouts.name, 1 << 40, 9)), "alerts are changes too"
        for webhook in (rollouts, pager, hook):
            await records.delete_webhook(webhook.name)
        assert await records.add_webhook(hook)
        assert await records.add_webhook(rollouts)
    async with store.transaction() as records:
        await records.emit(change(MODEL, "wanted"), CREATED_AT)
        await records.emit(change(OTHER_MODEL, "not wanted"), CREATED_AT)
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as records:
            await records.emit(change(MODEL, "rolled back"), CREATED_AT)
            raise ZeroDivisionError
    async with store.transaction() as records:
        (told,) = await records.deliveries(hook.name, 1 << 40, 9)
        assert ("wanted", 0, None) == (json.loads(told.body)["reason"], told.attempts, told.ended_at)
        assert [] == await records.deliveries(hook.name, told.number, 9)
        for other in ("projects/p/webhooks/b", "projects/q/webhooks/c"):
            assert [] == await records.deliveries(other, 1 << 40, 9)
        assert hook == await records.webhook(hook.name)
        assert [hook] == await records.webhooks("p", "", 1)
        assert [rollouts] == await records.webhooks("p", "a", 9)
        await records.delete_webhook(hook.name)
        assert await records.webhook(hook.name) is None
        await records.emit(change(MODEL, "later"), CREATED_AT)


# --------------------------------------------------------------------------------------------------- audit


async def test_the_audit_of_one_model_is_verified(client: ModelClient, memory_store: MemoryStore) -> None:
    await client.create()
    await client.champion()
    request = approval_pb2.VerifyAuditRequest(parent=client.model)
    last = (await client.audit())[-1]
    intact = await client.stub.VerifyAudit(request)
    assert ([], last.sequence, last.hash) == (list(intact.faults), intact.head_sequence, intact.head_hash)
    async with memory_store.transaction() as records:
        entries = records._data.audit
        entries[client.model, 2] = replace(entries[client.model, 2], actor="another")
    changed = await client.stub.VerifyAudit(request)
    assert [f"{client.model}: entry 2 was changed after it was written"] == list(changed.faults)
    with refused("NOT_FOUND", "UNKNOWN_MODEL"):
        await client.stub.VerifyAudit(approval_pb2.VerifyAuditRequest(parent="projects/default/models/none"))


def test_heads_of_other_registries_on_the_same_kafka_do_not_count() -> None:
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for registry, model in (("one", MODEL), ("two", OTHER_MODEL)):
        topic, event = to_event(change(model, "why"), CREATED_AT, AuditHead(3, "hash"), registry_id=registry)
        _note(topic, event.SerializeToString(), "one", found)
    assert {MODEL: {3: "hash"}} == found
