"""kill -9 of the registry and of PostgreSQL under load: each acknowledged change is there exactly once.

Events reach Kafka at least once: a relay that dies between Kafka's acknowledgement and its own note sends up
to one batch again, with the same ids and bytes. Readers dedupe by the id of the event; so does this test.
FLYWHEEL_SOAK_KILLS=50 makes it a long run.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import subprocess
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from aiokafka import AIOKafkaConsumer

from flywheel_common.grpc.channel import channel, from_rpc_error
from flywheel_common.kafka import topics
from flywheel_common.kafka.client import partitions_of
from flywheel_common.kafka.envelope import payload_of
from flywheel_common.postgres.pool import create_pool
from flywheel_local.kafka import Kafka
from flywheel_local.postgres import Postgres
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_protos.events.v1.lifecycle_pb2 import ModelStageChanged, RolloutChanged
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_registry.api.convert_events import to_event
from flywheel_registry.config import RegistrySettings
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.store.postgres.store import PostgresStore
from tests.support.builders.registry import ModelClient, add_model
from tests.support.eventually import eventually
from tests.support.ports import free_port
from tests.support.registry_changes import Change, Changes
from tests.support.servers.registry import NO_TICKS
from tests.support.servers.registry_process import command, environment, process

KILLS = int(os.environ.get("FLYWHEEL_SOAK_KILLS", "6"))
SEED = int(os.environ.get("FLYWHEEL_SOAK_SEED", "85"))
MODELS, VERSIONS, CALLERS = 5, 400, 3
"""Models of each kind, their versions, and concurrent callers of each model."""
CHANGES = 200
"""Changes that are acknowledged before each kill, and at most twice as many; calls are in flight then."""
BATCH = 500
"""Events that a relay sends at once, and sends again when it dies before it has noted them."""
RACING = 1000


class Victim:
    """A registry process that is killed and started again on the same address."""

    def __init__(self, env: dict[str, str], log: Path) -> None:
        self._env, self._log = env, log
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = self._stack.enter_context(process(self._env, self._log))

    def kill(self) -> None:
        self._stack.close()

    @property
    def ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None


@pytest.fixture
def victim_env(settings: Callable[..., RegistrySettings], kafka: Kafka) -> dict[str, str]:
    chosen = settings(
        listen=f"127.0.0.1:{free_port()}", kafka_bootstrap=kafka.bootstrap, **NO_TICKS, log_rpcs=False
    )
    return environment(chosen)


@pytest.fixture
def victim(victim_env: dict[str, str], tmp_path: Path) -> Iterator[Victim]:
    killed = Victim(victim_env, tmp_path / "registry.log")
    killed.start()
    yield killed
    killed.kill()


async def answers(stub: Any) -> bool:
    try:
        await stub.ListModels(registry_pb2.ListModelsRequest(parent="projects/default"), timeout=5)
    except grpc.RpcError as error:
        if not from_rpc_error(error).retryable:
            raise
        return False
    return True


async def add_models(dsn: str) -> tuple[list[str], list[str]]:
    """Store models with checked versions and their releases, and return the names of both kinds of models."""
    tag = uuid.uuid4().hex[:8]
    promoted, rolled = (
        [f"projects/default/models/{kind}-{tag}-{i}" for i in range(MODELS)]
        for kind in ("promoted", "rolled")
    )
    async with create_pool(dsn) as pool:
        store = PostgresStore(pool, to_event)
        for name in promoted + rolled:
            await add_model(store, name, VERSIONS, ModelVersion(name, registered_at=datetime.now(UTC)))
        # No file to check: the versions are ready.
        await pool.execute("UPDATE model_version SET check_problems = '[]'")
    return promoted, rolled


@pytest.mark.slow
@pytest.mark.timeout(180 + 30 * KILLS)
async def test_each_acknowledged_change_survives_kills_once(
    victim: Victim,
    victim_env: dict[str, str],
    postgres: Postgres,
    kafka: Kafka,
    database: str,
) -> None:
    dice = random.Random(SEED)
    address = victim_env["FLYWHEEL_REGISTRY_LISTEN"]
    async with channel(address, client_name="tests") as peer:
        stub: Any = registry_pb2_grpc.RegistryServiceStub(peer)
        await eventually(lambda: answers(stub), within=60, every=0.2)
        promoted, rolled = await add_models(database)
        for name in rolled:
            await ModelClient(stub, name.rpartition("/")[2]).promote(f"{name}/versions/1")
        changes = Changes(stub, promoted, rolled, VERSIONS, SEED, CALLERS)
        rates: list[float] = []
        async with changes.running():
            for kill in range(KILLS):
                started, wanted = time.monotonic(), CHANGES + dice.randrange(CHANGES)
                wanted += changes.done.total()
                await eventually(lambda at=wanted: changes.done.total() >= at, within=60)
                rates.append(CHANGES / (time.monotonic() - started))
                assert not victim.ended
                await _kill(dice, kill, victim, postgres)
        made = changes.made
    counts = Counter(change.outcome for change in made)
    assert sum(change.tries > 1 and change.outcome == "DONE" for change in made) >= KILLS, (
        "no retry was needed"
    )
    await eventually(lambda: _all_sent(database), within=60, every=0.2)
    connection = await asyncpg.connect(database)
    try:
        await _check_audit(connection, made)
        await _check_effects(connection, made, promoted + rolled)
        sent, duplicates = await _events(kafka, set(promoted + rolled))
        await _check_events(connection, made, sent)
    finally:
        await connection.close()
    assert duplicates <= KILLS * BATCH
    print(f"{KILLS} kills, changes: {dict(counts)}, {len(sent)} events, {duplicates} sent again, {rates=}")
    checked = await asyncio.to_thread(command, victim_env, "verify-audit")
    assert (0, "all audit chains are intact") == (checked.returncode, checked.stdout.strip()), checked.stderr


async def _kill(dice: random.Random, kill: int, victim: Victim, postgres: Postgres) -> None:
    """Kill the service, PostgreSQL, or both at once, and start them again."""
    service, database = [(True, False), (False, True), (True, True)][kill % 3]
    if database:
        await asyncio.to_thread(postgres.kill)
    if service:
        await asyncio.to_thread(victim.kill)
    await asyncio.sleep(dice.uniform(0.0, 1.0))
    if database:
        await asyncio.to_thread(postgres.restart)
    if service:
        victim.start()


async def _all_sent(dsn: str) -> bool:
    connection = await asyncpg.connect(dsn)
    try:
        return not await connection.fetchval("SELECT count(*) FROM outbox WHERE sent_at IS NULL")
    finally:
        await connection.close()


def mark_in(kind: str, text: str) -> str:
    """Return the mark in the reason of an entry or event, empty for none."""
    if kind == "UPDATE":
        found = re.search(r"shadow_min_labelled: \d+ → 1(\d{6})", text)
        return f"mark-{found[1]}" if found else ""
    found = re.search(r"mark-\d{6}", text)
    return found[0] if found else ""


MAIN_ENTRY = {
    "REGISTER": lambda row: row["action"] == "REGISTER",
    "ALIAS": lambda row: row["action"] == "ALIAS",
    "TAG": lambda row: row["action"] == "TAG",
    "UPDATE": lambda row: row["action"] == "UPDATE",
    "PROMOTE": lambda row: row["action"] == "PROMOTE" and row["to_state"] == "PRODUCTION",
    "ROLLBACK": lambda row: row["action"] == "ROLLBACK",
    "START": lambda row: row["action"] == "START_ROLLOUT",
    "ABORT": lambda row: row["to_state"] == "ABORTED",
}
"""Kind of a change → the entry that it makes exactly once."""


def expected_count(change: Change, found: int) -> int:
    """Return how often a change with this outcome must be found; unknown ones at most once."""
    return min(found, 1) if change.outcome == "UNKNOWN" else int(change.outcome == "DONE")


async def _check_audit(connection: Any, made: list[Change]) -> None:
    rows = await connection.fetch("SELECT model, sequence, action, to_state, reason FROM audit")
    main: Counter[tuple[str, str]] = Counter()
    marked: set[str] = set()
    for row in rows:
        for kind, is_main in MAIN_ENTRY.items():
            mark = mark_in(kind, row["reason"])
            marked.add(mark)
            main[kind, mark] += bool(mark and is_main(row))
    for change in made:
        found = main[change.kind, change.mark]
        assert expected_count(change, found) == found, change
        assert found or change.mark not in marked, f"{change} left an entry without its effect"
    per_model = Counter(row["model"] for row in rows)
    for model, last in await connection.fetch("SELECT name, last_audit FROM model"):
        assert last == per_model[model]


async def _check_effects(connection: Any, made: list[Change], models: list[str]) -> None:
    """Compare the rows that changes made with what callers were told, and with the last audit entries."""
    versions = await connection.fetch("SELECT model, number, description FROM model_version")
    registered = Counter(row["description"] for row in versions)
    described = {(row["model"], row["number"]): row["description"] for row in versions}
    served = await connection.fetch("SELECT reason FROM serving_span")
    spans = Counter(mark_in("PROMOTE", row["reason"]) for row in served)
    rollouts = await connection.fetch("SELECT model, number, state FROM rollout")
    states = {(row["model"], row["number"]): row["state"] for row in rollouts}
    for change in made:
        match change.kind:
            case "REGISTER":
                assert expected_count(change, registered[change.mark]) == registered[change.mark], change
                if change.outcome == "DONE":
                    name, number = change.answer.model_version.name.split("/versions/")
                    assert change.mark == described[name, int(number)]
            case "PROMOTE" | "ROLLBACK":
                assert expected_count(change, spans[change.mark]) == spans[change.mark], change
            case "START" | "ABORT" if change.outcome == "DONE":
                name, number = change.answer.rollout.name.split("/rollouts/")
                state = states[name, int(number)]
                assert state == "ABORTED" or change.kind == "START", change
    for model in models:
        assert 1 >= await connection.fetchval(
            "SELECT count(*) FROM model_version WHERE model = $1 AND stage = 'PRODUCTION'", model
        )
    entries = await connection.fetch(
        "SELECT model, action, subject, to_state, reason FROM audit ORDER BY sequence"
    )
    last = {(row["model"], row["action"], row["subject"]): row for row in entries}
    for (model, action, subject), row in last.items():
        if action == "ALIAS":
            version = await connection.fetchval(
                "SELECT version FROM model_alias WHERE model = $1 AND alias = $2",
                model,
                subject.rpartition("/")[2],
            )
            assert row["to_state"] == f"{model}/versions/{version}"
        elif action == "UPDATE":
            labelled = await connection.fetchval(
                "SELECT rollout_policy->>'shadow_min_labelled' FROM model WHERE name = $1", model
            )
            assert mark_in("UPDATE", row["reason"]) == f"mark-{labelled[1:]}"
        elif action == "TAG":
            key, value = row["reason"].split("=")
            tags = await connection.fetchval(
                "SELECT tags->>$2 FROM model_version WHERE model = $1 AND number = 1", model, key
            )
            assert tags == value


async def _events(kafka: Kafka, models: set[str]) -> tuple[list[Event], int]:
    """Return the events of the models in the order of their first record, and how many records repeat one."""
    found: dict[str, bytes] = {}
    repeated = 0
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap)
    await consumer.start()
    try:
        partitions = await partitions_of(consumer, [topics.MODEL_STAGE_CHANGED, topics.ROLLOUT_CHANGED])
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    event = Event.FromString(record.value)
                    if event.key in models:
                        assert found.setdefault(event.id, record.value) == record.value
                        repeated += 1
    finally:
        await consumer.stop()
    return [Event.FromString(value) for value in found.values()], repeated - len(found)


EVENT_OF = {
    "PROMOTE": lambda payload: getattr(payload, "to_stage", "") == "PRODUCTION",
    "ROLLBACK": lambda payload: getattr(payload, "to_stage", "") == "PRODUCTION",
    "START": lambda payload: getattr(payload, "state", "") == "PENDING_LOAD",
    "ABORT": lambda payload: getattr(payload, "state", "") == "ABORTED",
}
"""Kind of a change → the event that it makes exactly once."""


async def _check_events(connection: Any, made: list[Change], sent: list[Event]) -> None:
    main: Counter[tuple[str, str]] = Counter()
    heads: dict[tuple[str, str], list[int]] = defaultdict(list)
    kinds = {kind.DESCRIPTOR.full_name: kind for kind in (ModelStageChanged, RolloutChanged)}
    for event in sent:
        payload: Any = payload_of(event, kinds[event.type])
        heads[event.type, event.key].append(payload.audit_sequence)
        for kind, is_main in EVENT_OF.items():
            main[kind, mark_in(kind, payload.reason)] += is_main(payload)
    for change in made:
        if change.kind in EVENT_OF:
            found = main[change.kind, change.mark]
            assert expected_count(change, found) == found, change
    for order in heads.values():
        assert sorted(order) == order, "events of a model are out of order"
    stored = {row[0] for row in await connection.fetch("SELECT event_id FROM outbox")}
    assert stored == {event.id for event in sent}


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_thousand_racing_promotions_leave_one_production(
    victim: Victim, victim_env: dict[str, str], database: str
) -> None:
    async with channel(victim_env["FLYWHEEL_REGISTRY_LISTEN"], client_name="tests") as peer:
        stub: Any = registry_pb2_grpc.RegistryServiceStub(peer)
        await eventually(lambda: answers(stub), within=60, every=0.2)
        name = "projects/default/models/racing"
        async with create_pool(database) as pool:
            await add_model(PostgresStore(pool, to_event), name, RACING)
            await pool.execute("UPDATE model_version SET check_problems = '[]'")
        start = asyncio.Event()

        async def promote(number: int) -> str:
            await start.wait()
            request = registry_pb2.PromoteModelVersionRequest(
                name=f"{name}/versions/{number}",
                to_stage=model_pb2.STAGE_PRODUCTION,
                override=True,
                reason=f"race {number}",
                request_id=f"race-{number}",
            )
            while True:
                try:
                    await stub.PromoteModelVersion(request, timeout=60)
                    return name
                except grpc.RpcError as error:
                    if not from_rpc_error(error).retryable:
                        raise
                    await asyncio.sleep(0.2)

        racing = [asyncio.create_task(promote(number)) for number in range(1, RACING + 1)]
        start.set()
        assert RACING == len(await asyncio.gather(*racing))
    connection = await asyncpg.connect(database)
    try:
        stages = dict(await connection.fetch("SELECT stage, count(*) FROM model_version GROUP BY stage"))
        assert {"PRODUCTION": 1, "ARCHIVED": RACING - 1} == stages
        spans = await connection.fetchrow(
            "SELECT count(*), count(*) FILTER (WHERE until IS NULL) FROM serving_span"
        )
        assert (RACING, 1) == tuple(spans)
        serving = await connection.fetchval("SELECT champion FROM serving WHERE model = $1", name)
        open_span = await connection.fetchval("SELECT release FROM serving_span WHERE until IS NULL")
        assert serving == open_span
        moves = await connection.fetch(
            "SELECT subject, count(*) FROM audit "
            "WHERE action = 'PROMOTE' AND to_state = 'PRODUCTION' GROUP BY subject"
        )
        assert [1] * RACING == [row[1] for row in moves]
    finally:
        await connection.close()
