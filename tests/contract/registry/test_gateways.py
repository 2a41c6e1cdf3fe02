"""One law for gateways' heartbeats, in memory, in PostgreSQL and through the RPCs that gateways and operators use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flywheel_common.clock import SystemClock
from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry import convert_serving
from flywheel_registry.config import RegistrySettings
from flywheel_registry.memory_serving import MemoryGateways
from flywheel_registry.ports import Gateways
from flywheel_registry.resources import Gateway, ObservedModel
from flywheel_registry.server import MIGRATIONS
from flywheel_registry.store.heartbeats import PostgresGateways
from flywheel_registry.testing import running
from tests.support.eventually import eventually

HOUR = 3600.0
LATE = ObservedModel("projects/p/models/late", 3, ("releases/1", "releases/2"), {"releases/3": "too large"})
OTHER = ObservedModel("projects/p/models/other", 7)


class GatewaysByRpc:
    """`ports.Gateways` spoken by whoever is outside. RPCs tell neither what a gateway watches nor of heartbeats, and look an
    hour back."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def heartbeat(self, gateway: str, observed: Sequence[ObservedModel]) -> None:
        models = [
            model_pb2.ObservedModel(
                model=o.model, generation=o.generation, ready_releases=o.ready_releases, failures=o.failures
            )
            for o in observed
        ]
        await self._stub.ReportServing(pb.ReportServingRequest(gateway_id=gateway, models=models))

    async def watching(self, gateway: str, project: str) -> None:
        call = self._stub.WatchServing(
            pb.WatchServingRequest(gateway_id=gateway, parent=f"projects/{project}" if project else "")
        )
        async for _ in call:
            break
        call.cancel()

    async def seen(self, within_seconds: float, after: str = "", limit: int = 1000) -> list[Gateway]:
        assert within_seconds == HOUR, "ListGateways looks an hour back"
        found: list[Gateway] = []
        token = ""
        while len(found) < limit:
            page = await self._stub.ListGateways(pb.ListGatewaysRequest(page_size=limit, page_token=token))
            found += [gateway for g in page.gateways if (gateway := _gateway(g)).id > after]
            token = page.next_page_token
            if not token:
                break
        return found[:limit]

    def on_heartbeat(self, wake: Callable[[], None]) -> Callable[[], None]:
        raise NotImplementedError("no RPC tells of heartbeats")


def _gateway(message: Any) -> Gateway:
    return Gateway(
        message.id,
        message.last_heartbeat.ToDatetime(tzinfo=UTC),
        message.live,
        tuple(map(convert_serving.observed, message.observed)),
    )


def without_rpc(reason: str) -> pytest.MarkDecorator:
    """A law that no RPC reaches."""
    grpc = pytest.param("grpc", marks=pytest.mark.skip(reason=reason))
    return pytest.mark.parametrize("over", ["memory", "postgres", grpc], indirect=True)


@pytest.fixture(params=["memory", "postgres", "grpc"])
def over(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def replicas(over: str, settings: RegistrySettings | None) -> AsyncIterator[tuple[Gateways, Gateways]]:
    """The gateways as two replicas of the registry know them."""
    if settings is None:
        held: dict[str, Gateway] = {}
        yield MemoryGateways(SystemClock(), held), MemoryGateways(SystemClock(), held)
        return
    async with AsyncExitStack() as stack:
        if over == "grpc":
            one, two = [await stack.enter_async_context(running(settings)) for _ in "ab"]
            yield GatewaysByRpc(one), GatewaysByRpc(two)
            return
        pools = [await stack.enter_async_context(create_pool(settings.dsn)) for _ in "ab"]
        await migrate(pools[0], MIGRATIONS)
        yield PostgresGateways(pools[0]), PostgresGateways(pools[1])


async def test_a_heartbeat_is_seen_by_every_replica_and_the_newest_wins(
    replicas: tuple[Gateways, Gateways],
) -> None:
    one, two = replicas
    assert [] == await one.seen(HOUR)
    began = datetime.now(UTC)
    await one.heartbeat("g", [OTHER])
    await two.heartbeat("g", [LATE, OTHER])
    for replica in replicas:
        (seen,) = await replica.seen(HOUR)
        assert ("g", True, [LATE, OTHER]) == (seen.id, seen.live, list(seen.observed))
        # One machine, one clock.
        assert timedelta(0) <= seen.last_heartbeat - began <= timedelta(seconds=30)
    await one.heartbeat("g", [])
    (seen,) = await two.seen(HOUR)
    assert [] == list(seen.observed)


async def test_a_gateway_is_live_for_a_second_after_its_heartbeat(
    replicas: tuple[Gateways, Gateways],
) -> None:
    one, two = replicas
    for name in ("silent", "alive"):
        await one.heartbeat(name, [])

    async def silence() -> bool:
        await one.heartbeat("alive", [])
        return [("alive", True), ("silent", False)] == [(g.id, g.live) for g in await two.seen(HOUR)]

    await eventually(silence, within=5)


async def test_gateways_come_by_id_in_pages(replicas: tuple[Gateways, Gateways]) -> None:
    one, two = replicas
    for name in ("b", "a", "d", "c", "B"):
        await one.heartbeat(name, [])

    async def ids(after: str, limit: int) -> list[str]:
        return [gateway.id for gateway in await two.seen(HOUR, after, limit)]

    assert ["B", "a", "b", "c", "d"] == await ids("", 9)
    assert ["B", "a"] == await ids("", 2)
    assert ["c", "d"] == await ids("b", 9)
    assert [] == await ids("d", 9)


async def test_whoever_watches_but_was_never_heard_is_not_seen(replicas: tuple[Gateways, Gateways]) -> None:
    one, two = replicas
    await one.watching("g", "p")
    assert [] == await two.seen(HOUR)
    await one.heartbeat("g", [LATE])
    assert ["g"] == [gateway.id for gateway in await two.seen(HOUR)]


@without_rpc("ListGateways does not tell what a gateway watches")
async def test_what_a_gateway_watches_stays_until_it_watches_another(
    replicas: tuple[Gateways, Gateways],
) -> None:
    one, two = replicas

    async def project() -> str:
        (seen,) = await two.seen(HOUR)
        return seen.project

    await one.heartbeat("g", [LATE])
    assert "" == await project()
    await one.watching("g", "p")
    assert "p" == await project()
    await one.heartbeat("g", [])
    assert "p" == await project()
    await two.watching("g", "")
    assert "" == await project()


@without_rpc("ListGateways always looks an hour back")
async def test_who_was_silent_for_longer_than_asked_is_left_out(replicas: tuple[Gateways, Gateways]) -> None:
    one, two = replicas
    await one.heartbeat("g", [])
    assert ["g"] == [gateway.id for gateway in await two.seen(60.0)]

    async def forgotten() -> bool:
        return [] == await two.seen(0.05)

    await eventually(forgotten, within=5)


@without_rpc("no RPC tells of heartbeats")
async def test_a_heartbeat_wakes_whoever_waits_at_the_replica_that_got_it(
    replicas: tuple[Gateways, Gateways],
) -> None:
    one, two = replicas
    woken: list[str] = []
    stop = one.on_heartbeat(lambda: woken.append("first"))
    one.on_heartbeat(lambda: woken.append("second"))
    two.on_heartbeat(lambda: woken.append("elsewhere"))
    await one.heartbeat("g", [])
    assert ["first", "second"] == sorted(woken)
    stop()
    stop()
    await one.heartbeat("g", [])
    assert ["first", "second", "second"] == sorted(woken)


async def test_gateways_that_were_silent_for_a_day_are_forgotten(database: str) -> None:
    async with create_pool(database) as pool:
        await migrate(pool, MIGRATIONS)
        gateways = PostgresGateways(pool)
        for name in ("old", "new"):
            await gateways.heartbeat(name, [])
        await gateways.watching("never heard", "p")
        await pool.execute("UPDATE gateway SET last_heartbeat = now() - interval '25 hours' WHERE id = 'old'")
        await gateways.forget_old()
        assert ["never heard", "new"] == [
            r["id"] for r in await pool.fetch("SELECT id FROM gateway ORDER BY id")
        ]
