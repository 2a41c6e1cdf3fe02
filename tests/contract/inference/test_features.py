"""Contract tests of the feature service, in memory and over gRPC to a stand-in with its API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

from flywheel_common.errors import DeadlineExceeded, FlywheelError, NotFound, Unavailable
from flywheel_common.grpc.channel import channel
from flywheel_common.scoring.feature_block import NOT_FOUND, NULL, PRESENT
from flywheel_inference.fakes.features import MemoryFeatures
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec
from flywheel_inference.store.grpc.features import GrpcFeatures
from flywheel_protos.types.v1.value_pb2 import DATA_TYPE_FLOAT64, DATA_TYPE_STRING
from tests.support.builders.inference import FEATURE_SET
from tests.support.eventually import eventually
from tests.support.peers.inference import FeatureServicer, PeerServer, feature_server

TIMEOUT = 10.0
CONTRACT = FeatureSetContract(
    FEATURE_SET,
    (FieldSpec("carrier", DATA_TYPE_STRING),),
    (FieldSpec("miles", DATA_TYPE_FLOAT64), FieldSpec("origin", DATA_TYPE_STRING)),
    (
        FieldSpec("hist__delay", DATA_TYPE_FLOAT64),
        FieldSpec("trip__miles", DATA_TYPE_FLOAT64),
        FieldSpec("route__origin", DATA_TYPE_STRING),
    ),
)


@dataclass
class Adapter:
    port: Any
    """`scoring.FeatureLookup` and `models.FeatureSetContracts`; hist__delay: UA 2, DL -1, AA null."""
    stop: Callable[[], Awaitable[None]]
    start: Callable[[], Awaitable[None]]


@asynccontextmanager
async def over_grpc(servicer: FeatureServicer) -> AsyncIterator[tuple[GrpcFeatures, PeerServer]]:
    server = feature_server(servicer)
    await server.start()
    try:
        async with channel(server.address, client_name="tests", health_check=False, retries=False) as client:
            yield GrpcFeatures(client), server
    finally:
        await server.stop()


@pytest.fixture(params=["memory", "grpc"])
async def features(request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
    if request.param == "memory":
        rows = {("UA",): [2.0], ("DL",): [-1.0], ("AA",): [None]}
        memory = MemoryFeatures([CONTRACT], [FieldSpec("hist__delay", DATA_TYPE_FLOAT64)], rows)

        async def stop() -> None:
            memory.down = True

        async def start() -> None:
            memory.down = False

        yield Adapter(memory, stop, start)
        return
    servicer = FeatureServicer()
    servicer.delays["AA"] = None
    async with over_grpc(servicer) as (port, server):
        yield Adapter(port, server.stop, server.start)


async def delays(features: Adapter, carriers: list[str]) -> tuple[list[float | None], list[int]]:
    """Values and statuses of hist__delay."""
    keys, fields = [(c,) for c in carriers], [(1.0, "JFK")] * len(carriers)
    block = await features.port.online(CONTRACT, keys, fields, None, TIMEOUT)
    assert block.feature_set == FEATURE_SET
    place = [column.name for column in block.columns].index("hist__delay")
    column = block.columns[place]
    assert column.data_type == DATA_TYPE_FLOAT64
    values = [v if ok else None for v, ok in zip(column.values.tolist(), column.valid.tolist(), strict=True)]
    return values, block.statuses[place].tolist()


async def test_contract_returns_join_keys_request_fields_and_features(features: Adapter) -> None:
    assert await features.port.contract(FEATURE_SET) == CONTRACT
    with pytest.raises(NotFound):
        await features.port.contract("projects/test/featureSets/unknown/versions/1")


async def test_features_come_in_request_order_with_their_statuses(features: Adapter) -> None:
    values, statuses = await delays(features, ["DL", "ZZ", "UA", "AA", "DL"])
    assert values == [-1.0, None, 2.0, None, -1.0]
    assert statuses == [PRESENT, NOT_FOUND, PRESENT, NULL, PRESENT]
    assert await delays(features, ["UA"]) == ([2.0], [PRESENT])


async def test_an_outage_raises_unavailable_and_reads_work_afterwards(features: Adapter) -> None:
    await features.stop()
    with pytest.raises(Unavailable):
        await delays(features, ["UA"])
    with pytest.raises((Unavailable, DeadlineExceeded)):
        await features.port.contract(FEATURE_SET, 1.0)
    await features.start()

    async def answered() -> Any:
        with suppress(Unavailable):
            return await delays(features, ["UA"])
        return None

    assert await eventually(answered) == ([2.0], [PRESENT])


async def test_a_hung_feature_service_raises_deadline_exceeded() -> None:
    servicer = FeatureServicer()
    servicer.hold = asyncio.Event()
    async with over_grpc(servicer) as (port, _):
        with pytest.raises(DeadlineExceeded):
            await port.online(CONTRACT, [("UA",)], [(1.0, "JFK")], None, 0.1)
        servicer.hold.set()


async def test_a_refused_request_is_invalid_argument_not_an_outage() -> None:
    class Refusing(FeatureServicer):
        async def GetOnlineFeatures(self, request: Any, context: Any) -> Any:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a wrong type")

    async with over_grpc(Refusing()) as (port, _):
        with pytest.raises(FlywheelError) as caught:
            await port.online(CONTRACT, [("UA",)], [(np.nan, "JFK")], 5, TIMEOUT)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
