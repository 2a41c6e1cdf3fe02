"""Applied offsets in answers of a batch: only for requests with the flag, each for its own rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from flywheel_common.columns import from_table
from flywheel_feature.api.answer_encoding import AnswerEncoder
from flywheel_feature.definitions.model import (
    Aggregation,
    AggregationFunction,
    DataType,
    Feature,
    StreamView,
    View,
)
from flywheel_feature.encoding.keys import entity_keys
from flywheel_feature.online.lookup import Lookup, SharedRead
from flywheel_feature.windows.event_order import event_ranks
from flywheel_feature.windows.tile_layout import TileLayout
from flywheel_feature.windows.tile_writing import Events, partials, state_of
from flywheel_protos.feature.v1 import feature_pb2 as pb
from tests.support.builders.feature_units import MINUTE, plan_of_view

AGGREGATIONS = (Aggregation("flights", AggregationFunction.COUNT, "", 60 * MINUTE),)
LAYOUT = TileLayout(AGGREGATIONS, 5 * MINUTE)


def state(count: int, offsets: dict[int, int]) -> bytes:
    times = np.zeros(count, np.int64)
    ranks = event_ranks([str(i) for i in range(count)])
    return state_of(LAYOUT, partials(LAYOUT, Events(times, times, times, ranks, {}))[0], offsets)


class Store:
    """States by entity; records the number of keys of each read."""

    def __init__(self, states: dict[bytes, bytes]) -> None:
        self._states = states
        self.reads: list[int] = []

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.reads.append(len(keys))
        await asyncio.sleep(0)
        return [next((v for k, v in self._states.items() if key.endswith(k)), None) for key in keys]


def lookup(*origins: str, with_applied_offsets: bool) -> Lookup:
    entities = entity_keys([(DataType.STRING, origins)])
    return Lookup([entities], {}, MINUTE, len(origins), with_applied_offsets)


def decoded(answer: bytes) -> tuple[int, list[list[int]] | None]:
    """The count of flights in the last row, and the offsets of every row."""
    message = pb.GetOnlineFeaturesResponse.FromString(answer)
    count = int(from_table(message.features)["traffic__flights"][0][-1])
    if not message.HasField("applied_offsets"):
        return count, None
    lists, _ = from_table(message.applied_offsets)["traffic@3"]
    return count, [row.tolist() for row in lists]


async def test_only_requests_with_the_flag_get_offsets_of_their_rows() -> None:
    features = (Feature("flights", DataType.INT64),)
    kind = StreamView("landings", aggregations=AGGREGATIONS, tile=5 * MINUTE)
    view = View("default", "traffic", "origin", kind, version=3, features=features)
    store = Store({b"{3:JFK}"[1:]: state(2, {0: 7, 1: 9}), b"{3:LGA}"[1:]: state(4, {1: 11})})
    shared = SharedRead(plan_of_view(view), store, AnswerEncoder)
    one, two, three = await asyncio.gather(
        shared.read(lookup("EWR", "JFK", with_applied_offsets=True)),
        shared.read(lookup("JFK", with_applied_offsets=False)),
        shared.read(lookup("LGA", with_applied_offsets=True)),
    )
    assert [4] == store.reads
    assert (2, [[], [0, 7, 1, 9]]) == decoded(one)
    assert (2, None) == decoded(two)
    assert (4, [[1, 11]]) == decoded(three)
    assert (2, None) == decoded(await shared.read(lookup("JFK", with_applied_offsets=False)))
