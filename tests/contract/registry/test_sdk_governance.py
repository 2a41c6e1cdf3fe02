"""Approvals, audits and webhooks by the SDK and the CLI, on a registry in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flywheel.governance_calls import chain_faults, verify_webhook
from flywheel_common.webhooks.webhook import signature
from flywheel_protos.registry.v1 import approval_pb2, model_pb2, registry_pb2
from flywheel_registry.fakes.store import MemoryStore
from tests.support.builders.registry import ModelClient
from tests.support.commands import flywheel
from tests.support.servers.registry import refused, running_memory_registry

SECRET = "0123456789abcdef"


async def cli(client: ModelClient, *command: str) -> Any:
    """Run `flywheel models` against the registry."""
    return await flywheel("models", *command, registry=client.stub.address)


async def test_the_command_verifies_an_audit(client: ModelClient, memory_store: MemoryStore) -> None:
    await client.create()
    await client.champion()
    intact = await cli(client, "verify-audit", "late")
    assert (0, "intact") == (intact.exit_code, intact.output.strip())
    async with memory_store.transaction() as records:
        entries = records._data.audit
        entries[client.model, 3] = replace(entries[client.model, 3], reason="another")
    changed = await cli(client, "verify-audit", "late")
    assert (1, 1) == (changed.exit_code, changed.output.count("entry 3 was changed"))


async def test_the_chain_is_computed_by_the_client(client: ModelClient) -> None:
    await client.create(description="ünïcode")
    await client.champion()
    entries = await client.audit()
    assert [] == chain_faults(client.model, entries)
    assert [f"{client.model}: entry 2 is missing (found 3)"] == chain_faults(
        client.model, [entries[0], *entries[2:]]
    )
    entries[1].evidence_hash = "00"
    assert [f"{client.model}: entry 2 was changed after it was written"] == chain_faults(
        client.model, entries
    )


async def test_an_approval_by_the_command_counts(client: ModelClient) -> None:
    await client.create(gate_policy=model_pb2.GatePolicy(min_approvals=1))
    declared = model_pb2.ModelVersion()
    declared.artifacts.add(name="model.onnx", size_bytes=1, sha256="ab" * 32)
    request = registry_pb2.CreateModelVersionRequest(parent=client.model, model_version=declared)
    await client.stub.CreateModelVersion(request)
    approved = await cli(client, "approve", "late/1", "--reason", "looked at it")
    assert (0, True) == (approved.exit_code, "looked at it" in approved.output), approved.output
    wanted = approval_pb2.ApproveModelVersionRequest(name=f"{client.model}/versions/1", reason="mine")
    with refused("FAILED_PRECONDITION", "OWN_VERSION"):
        await client.stub.ApproveModelVersion(wanted)


async def test_webhooks_are_managed_by_the_command() -> None:
    async with running_memory_registry(MemoryStore(), webhook_hosts=("*",)) as stub:
        client = ModelClient(stub)
        await client.create()
        made = await cli(
            client, "webhook", "ops", "--url", "http://h/", "--secret", SECRET, "--model", "late"
        )
        assert (0, False) == (made.exit_code, SECRET in made.output), made.output
        await client.champion()
        assert "projects/default/webhooks/ops" in (await cli(client, "webhooks")).output
        assert 0 == (await cli(client, "deliveries", "ops")).exit_code
        assert 0 == (await cli(client, "webhook", "ops")).exit_code
        assert 1 == (await cli(client, "deliveries", "ops")).exit_code


def test_the_signature_of_a_delivery_is_checked() -> None:
    header = signature(SECRET, 1_000, b'{"a":1}')
    assert verify_webhook(SECRET, header, b'{"a":1}', at=1_010)
    assert not verify_webhook(SECRET, header, b'{"a":2}', at=1_010)
    assert not verify_webhook("another secret 00", header, b'{"a":1}', at=1_010)
    assert not verify_webhook(SECRET, header, b'{"a":1}', at=1_301)
    for broken in ("", "t=x,v1=y", "v1=" + header.partition("v1=")[2]):
        assert not verify_webhook(SECRET, broken, b'{"a":1}', at=1_010)
