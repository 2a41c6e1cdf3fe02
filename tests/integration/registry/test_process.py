"""The registry as a process: events in Kafka, kill -9 during a rollout, the command line."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from aiokafka import AIOKafkaConsumer

from flywheel_common.grpc.channel import channel, from_rpc_error
from flywheel_common.kafka.envelope import parse_event, payload_of
from flywheel_local.kafka import Kafka
from flywheel_protos.events.v1.lifecycle_pb2 import ModelStageChanged, RolloutChanged
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_registry.config import RegistrySettings
from tests.support.builders.registry import ModelClient
from tests.support.eventually import eventually
from tests.support.peers.registry import FakeMonitor, comparison, running_gateway
from tests.support.ports import free_port
from tests.support.servers.registry_process import command, environment, process


async def events_of(kafka: Kafka, topic: str, model: str, count: int) -> list[Any]:
    """Return the first `count` events of a model, in order; an event that was sent twice counts once."""
    found: dict[str, Any] = {}
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest", group_id=None
    )
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            while len(found) < count:
                record = await consumer.getone()
                event = parse_event(record.value)
                if event.key == model:
                    assert record.key == model.encode()
                    found.setdefault(event.id, event)
    finally:
        await consumer.stop()
    return list(found.values())


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_killed_registry_continues_its_rollout_with_ordered_events(
    settings: Callable[..., RegistrySettings],
    monitor: FakeMonitor,
    kafka: Kafka,
    tmp_path: Path,
    database: str,
) -> None:
    port = free_port()
    env = environment(
        settings(listen=f"127.0.0.1:{port}", kafka_bootstrap=kafka.bootstrap, monitor_address=monitor.address)
    )
    async with channel(f"127.0.0.1:{port}", client_name="tests") as peer:
        client = ModelClient(registry_pb2_grpc.RegistryServiceStub(peer), model=f"m{os.getpid()}-{port}")
        with process(env, tmp_path / "log") as first:

            async def answers() -> bool:
                try:
                    await client.stub.ListModels(registry_pb2.ListModelsRequest(parent="projects/default"))
                except grpc.RpcError as error:
                    code = from_rpc_error(error).code
                    assert code is grpc.StatusCode.UNAVAILABLE
                    return False
                return True

            await asyncio.wait_for(eventually(answers, within=60), 60)
            await client.create(rollout_policy=model_pb2.RolloutPolicy(canary_percents=[10, 100]))
            champion, _ = await client.champion()
            challenger, release = await client.staged("second")
            rollout = await client.start(release.name)
            monitor.answers = {1: comparison()}

            async def in_canary() -> bool:
                return (await client.rollout(rollout.name)).challenger_percent == 10

            async with running_gateway(client.stub, "g"):
                await eventually(in_canary, within=20)
            first.send_signal(signal.SIGKILL)
            first.wait()
        with process(env, tmp_path / "log") as second:
            monitor.answers = {2: comparison()}
            # Until the new process listens, calls answer UNAVAILABLE; the channel reconnects by itself.
            await asyncio.wait_for(eventually(answers, within=60), 60)

            async def promoted() -> bool:
                return (await client.rollout(rollout.name)).state == model_pb2.ROLLOUT_STATE_PROMOTED

            await eventually(promoted, within=60)
            stages = [
                payload_of(e, ModelStageChanged)
                for e in await events_of(kafka, "model.stage_changed", client.model, 7)
            ]
            changes = [
                payload_of(e, RolloutChanged)
                for e in await events_of(kafka, "rollout.changed", client.model, 7)
            ]
            second.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(second.wait, 20) == 0
    one, two = champion.name, challenger.name
    assert [(e.model_version, e.to_stage) for e in stages] == [
        (one, "STAGING"),
        (one, "CANDIDATE"),
        (one, "PRODUCTION"),
        (two, "STAGING"),
        (two, "CANDIDATE"),
        (one, "ARCHIVED"),
        (two, "PRODUCTION"),
    ]
    assert stages[-1].release == release.name
    assert [(e.state, e.challenger_percent) for e in changes] == [
        ("PENDING_LOAD", 0),
        ("PROMOTED", 100),
        ("PENDING_LOAD", 0),
        ("SHADOW", 0),
        ("CANARY", 10),
        ("CANARY", 100),
        ("PROMOTED", 100),
    ]
    checked = await asyncio.to_thread(command, env, "verify-audit")
    assert (checked.returncode, checked.stdout.strip()) == (0, "all audit chains are intact")
    await forget_last_entry(database, client.model)
    checked = await asyncio.to_thread(command, env, "verify-audit")
    assert checked.returncode == 1
    assert "is missing that an event was sent with" in checked.stderr


async def forget_last_entry(database: str, model: str) -> None:
    """Remove the newest audit entry and change the head, as one who may do anything in the database can."""
    conn = await asyncpg.connect(database)
    try:
        await conn.execute("ALTER TABLE audit DISABLE TRIGGER audit_written_once")
        await conn.execute(
            "DELETE FROM audit a USING model m WHERE m.name = $1 AND a.model = $1 AND sequence = last_audit",
            model,
        )
        await conn.execute(
            "UPDATE model SET last_audit = last_audit - 1, audit_head = "
            "(SELECT hash FROM audit WHERE model = $1 ORDER BY sequence DESC LIMIT 1) WHERE name = $1",
            model,
        )
    finally:
        await conn.close()


def test_migrating_twice_changes_nothing(
    settings: Callable[..., RegistrySettings], empty_database: str
) -> None:
    env = environment(settings(postgres_dsn=empty_database))
    outputs = [command(env, "migrate").stdout for _ in range(2)]
    assert [line.splitlines()[-1] for line in outputs][1] == "0 migration(s) applied"
    assert "migration(s) applied" in outputs[0]
    assert outputs[0] != outputs[1]
