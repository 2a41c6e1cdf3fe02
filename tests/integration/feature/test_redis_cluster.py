"""The online store on a Redis Cluster of three nodes: keys in many slots, moving slots, lost nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

import flywheel as fw
from flywheel.tables import to_dict
from flywheel_common.errors import Unavailable
from flywheel_feature.config import FeatureSettings
from flywheel_feature.definitions.model import DataType, Feature
from flywheel_feature.encoding.row_encoding import RowLayout
from flywheel_feature.ingest.generations import Generations
from flywheel_feature.server import build
from flywheel_feature.store.redis.cluster import ClusterPipe, _slot
from flywheel_feature.store.redis.online_store import OnlineStore
from tests.support.eventually import eventually
from tests.support.servers.feature import StreamWorkers
from tests.support.servers.redis_cluster import PASSWORD, Cluster, three_nodes

LAYOUT = RowLayout([Feature("x", DataType.FLOAT64)])


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Cluster]:
    with three_nodes(tmp_path) as nodes:
        yield nodes


@pytest_asyncio.fixture
async def cluster(nodes: Cluster) -> Cluster:
    await nodes.form()
    return nodes


@pytest_asyncio.fixture
async def store(cluster: Cluster) -> AsyncIterator[OnlineStore]:
    pipe = ClusterPipe(cluster.url)
    yield OnlineStore(pipe)
    await pipe.close()


def rows(count: int, value: float, time: int) -> list[bytes]:
    numbers = np.full(count, value) + np.arange(count)
    times = np.full(count, time, np.int64)
    return LAYOUT.encode({"x": (numbers, np.ones(count, bool))}, times, times)


def keys(count: int) -> list[bytes]:
    return [b"default/v@1{%d:%b}" % (len(str(i)), str(i).encode()) for i in range(count)]


async def test_rows_in_every_slot_are_written_and_read_in_one_call(store: OnlineStore) -> None:
    assert await store.ping()
    names = keys(1_000)
    assert len({key_slot(k) // 5461 for k in names}) == 3
    assert await store.write_rows(names, rows(1_000, 1.0, 5), 0) == 1_000
    assert await store.write_rows(names, rows(1_000, 2.0, 4), 0) == 0
    decoded = LAYOUT.decode(await store.read([*names, b"default/v@1{absent}"]))
    assert decoded.columns[0][0].tolist() == [1.0 + i for i in range(1_000)] + [0.0]
    assert await store.delete([*names[:10], b"absent"]) == 10


async def test_a_moved_slot_is_followed_and_a_dead_node_raises_unavailable(
    cluster: Cluster, store: OnlineStore
) -> None:
    names = keys(300)
    await store.write_rows(names, rows(300, 1.0, 5), 0)
    slot = key_slot(names[0])
    owner = next(i for i in range(3) if [0, 5461, 10923, 16384][i + 1] > slot)
    source, target = cluster.node(cluster.ports[owner]), cluster.node(cluster.ports[(owner + 1) % 3])
    target_id, source_id = await target.call("CLUSTER", "MYID"), await source.call("CLUSTER", "MYID")
    await target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
    await source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
    # In the middle of a migration: moved keys and new keys are at the new owner.
    host, port = "127.0.0.1", cluster.ports[(owner + 1) % 3]
    await source.call("MIGRATE", host, port, names[0], 0, 2000, "AUTH", PASSWORD)
    assert LAYOUT.decode(await store.read(names)).columns[0][0].tolist() == [1.0 + i for i in range(300)]
    assert await store.write_rows(names, rows(300, 7.0, 6), 0) == 300
    for key in await source.call("CLUSTER", "GETKEYSINSLOT", slot, 1000):
        await source.call("MIGRATE", host, port, key, 0, 2000, "AUTH", PASSWORD)
    for node in (target, source):
        await node.call("CLUSTER", "SETSLOT", slot, "NODE", target_id)
    assert LAYOUT.decode(await store.read(names)).columns[0][0].tolist() == [7.0 + i for i in range(300)]
    await source.close()
    await target.close()
    cluster.kill(cluster.ports[owner])
    with pytest.raises(Unavailable) as raised:
        await store.read(names)
    assert raised.value.reason == "ONLINE_STORE_DOWN"


class _Counter:
    def __init__(self) -> None:
        self.value = 0

    async def generation(self) -> int:
        return self.value

    async def next_generation(self, after: int) -> int:
        self.value += after == self.value
        return self.value


async def test_a_node_that_lost_its_data_begins_a_new_generation(
    cluster: Cluster, store: OnlineStore
) -> None:
    generations = Generations(store, _Counter())
    assert [await generations.current() for _ in range(3)] == [1, 1, 1]
    node = cluster.node(cluster.ports[2])
    await node.call("FLUSHALL")
    await node.close()
    assert await generations.marked() is None
    assert [await generations.current() for _ in range(2)] == [2, 2]


async def test_a_restarted_node_begins_a_new_generation(cluster: Cluster, store: OnlineStore) -> None:
    generations = Generations(store, _Counter())
    assert [await generations.current() for _ in range(2)] == [1, 1]
    cluster.kill(cluster.ports[1])
    cluster.start(cluster.ports[1])

    async def noticed() -> bool:
        try:
            return await generations.current() == 2
        except Unavailable:
            return False

    await eventually(noticed, within=20)
    assert 2 == await generations.marked()


@given(st.binary(max_size=40))
def test_a_command_is_sent_to_the_slot_of_its_key(key: bytes) -> None:
    assert _slot(("GET", key)) == key_slot(key) == _slot(("EVALSHA", "0" * 40, 1, key, "x"))


@pytest.mark.timeout(120)
async def test_the_service_pushes_materializes_and_reads_on_a_cluster(
    cluster: Cluster,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    workers: StreamWorkers,
) -> None:
    environment["FLYWHEEL_FEATURE_REDIS_URL"] = cluster.url
    workers.environment["FLYWHEEL_FEATURE_REDIS_URL"] = cluster.url
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    schema = {"carrier": fw.STRING, "at": fw.TIMESTAMP, "delay": fw.FLOAT64}
    carrier = fw.Entity("carrier", {"carrier": fw.STRING})
    landings = fw.StreamSource("landings", schema, timestamp="at")
    recent = fw.StreamView("recent", carrier, landings, [fw.count("7d", name="n")], tile="1h")
    table = fw.ParquetSource("table", schema, timestamp="at", uri="s3://nowhere/at/all/")
    facts = fw.BatchView("facts", carrier, table, {"delay": fw.FLOAT64})
    now = datetime(2013, 1, 1, tzinfo=UTC)
    names = [f"C{i}" for i in range(50)]
    columns = {"carrier": names, "at": [now] * 50, "delay": [float(i) for i in range(50)]}
    async with AsyncExitStack() as stack:
        server = await build(FeatureSettings(), stack)
        supervised = asyncio.create_task(server.run_until_signal())
        while not server.port and not supervised.done():
            await asyncio.sleep(0.01)
        async with fw.Client(feature=f"127.0.0.1:{server.port}") as client:
            await client.apply(
                fw.compile_definitions(
                    [recent, facts, fw.FeatureSet("all", ["recent:n", "facts:delay"])], "default"
                )
            )
            workers.start()
            await client.push("views/facts", columns, schema)
            await client.wait_applied((await client.push("landings", columns, schema)).offsets, within=40)
            answer = await client.online_features("all", {"carrier": names}, as_of=now)
            assert to_dict(answer.features) == {"recent__n": [1] * 50, "facts__delay": columns["delay"]}
        server.request_stop()
        await supervised
