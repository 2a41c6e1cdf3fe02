"""Requests that are read together get their own rows, and only what they asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from flywheel_feature.aggregation import Events, TileLayout, event_ranks
from flywheel_feature.applied_offsets import AppliedOffsets
from flywheel_feature.catalog import Catalog
from flywheel_feature.convert_answer import AnswerEncoder
from flywheel_feature.definitions import (
    Aggregation,
    AggregationFunction,
    DataType,
    Entity,
    Feature,
    Field,
    StreamView,
    VersionRef,
    View,
)
from flywheel_feature.keys import entity_keys
from flywheel_feature.online import Lookup, SharedRead
from flywheel_feature.read_plan import plan_of_features

MINUTE = 60_000_000
AGGREGATIONS = (Aggregation("flights", AggregationFunction.COUNT, "", 60 * MINUTE),)
LAYOUT = TileLayout(AGGREGATIONS, 5 * MINUTE)


def state(count: int, offsets: dict[int, int]) -> bytes:
    times = np.zeros(count, np.int64)
    ranks = event_ranks([str(i) for i in range(count)])
    return LAYOUT.state_of(LAYOUT.partials(Events(times, times, times, ranks, {}))[0], offsets)


class Store:
    """States by entity, and how many keys each read asked for."""

    def __init__(self, states: dict[bytes, bytes]) -> None:
        self._states = states
        self.asked: list[int] = []

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.asked.append(len(keys))
        await asyncio.sleep(0)
        return [next((v for k, v in self._states.items() if key.endswith(k)), None) for key in keys]


def lookup(*origins: str, with_applied_offsets: bool) -> Lookup:
    entities = entity_keys([(DataType.STRING, origins)])
    return Lookup([entities], {}, np.full(len(origins), MINUTE, np.int64), with_applied_offsets)


def lists(applied: Sequence[AppliedOffsets]) -> list[list[int]]:
    (view,) = applied
    return [view.pairs[a:b].ravel().tolist() for a, b in zip(view.bounds[:-1], view.bounds[1:], strict=True)]


async def test_only_who_asks_gets_the_offsets_of_its_own_rows() -> None:
    features = (Feature("flights", DataType.INT64),)
    kind = StreamView("landings", aggregations=AGGREGATIONS, tile=5 * MINUTE)
    view = View("default", "traffic", "origin", kind, version=3, features=features)
    entity = Entity("default", "origin", (Field("origin", DataType.STRING),))
    catalog = Catalog(
        "default", 1, {"origin": entity}, {}, {VersionRef("traffic", 3): view}, {}, {"traffic": view}
    )
    store = Store({b"{3:JFK}"[1:]: state(2, {0: 7, 1: 9}), b"{3:LGA}"[1:]: state(4, {1: 11})})
    shared = SharedRead(plan_of_features(catalog, ["traffic:*"]), store, AnswerEncoder)
    one, two, three = await asyncio.gather(
        shared.read(lookup("EWR", "JFK", with_applied_offsets=True)),
        shared.read(lookup("JFK", with_applied_offsets=False)),
        shared.read(lookup("LGA", with_applied_offsets=True)),
    )
    assert [4] == store.asked
    assert ([[], [0, 7, 1, 9]], [[1, 11]]) == (lists(one.applied), lists(three.applied))
    assert () == two.applied
    assert [2, 2, 4] == [int(a.columns[0][0][-1]) for a in (one, two, three)]
    alone = await shared.read(lookup("JFK", with_applied_offsets=False))
    assert () == alone.applied
