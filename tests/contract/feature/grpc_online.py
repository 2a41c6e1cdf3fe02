"""Rows and tiles by the RPCs of the service: written by PushFeatures, read by GetOnlineFeatures."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

import flywheel as fw
from flywheel.tables import to_dict, to_table
from flywheel_feature.api import convert_definitions
from flywheel_feature.definitions.model import (
    SECOND,
    Aggregation,
    BatchView,
    DataType,
    Entity,
    Feature,
    FeatureSet,
    Field,
    ParquetSource,
    Source,
    StreamSource,
    StreamView,
    View,
)
from flywheel_feature.encoding.row_encoding import RowLayout
from flywheel_protos.feature.v1 import definitions_pb2
from flywheel_protos.feature.v1 import feature_pb2 as pb

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = 1_357_000_000 * SECOND // (600 * SECOND) * (600 * SECOND)
KEY, TIME, X = Field("k", DataType.BYTES), Field("at", DataType.TIMESTAMP), Field("x", DataType.FLOAT64)
MADE = Field("made", DataType.TIMESTAMP)
THING = Entity("default", "thing", (KEY,))
SCHEMA = {"k": fw.BYTES, "at": fw.TIMESTAMP, "x": fw.FLOAT64}


def moment(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)


async def _apply(client: fw.Client, source: Source, view: View, feature_set: FeatureSet) -> None:
    await client.apply(
        definitions_pb2.Definitions(
            entities=[convert_definitions.entity_to_proto(THING)],
            sources=[convert_definitions.source_to_proto(source)],
            views=[convert_definitions.view_to_proto(view)],
            feature_sets=[convert_definitions.feature_set_to_proto(feature_set)],
        )
    )


class GrpcRows:
    """online.OnlineRows and pushing.Rows: a key is the entity of a batch view with the feature x. Created times and numbers of rows
    written are not told, lifetimes belong to the view."""

    def __init__(self, client: fw.Client, layout: RowLayout) -> None:
        self._client = client
        self._layout = layout

    async def apply(self) -> None:
        source = Source(
            "default", "rows", (KEY, TIME, MADE, X), "at", "made", ParquetSource("s3://nowhere/rows/")
        )
        view = View("default", "xs", "thing", BatchView("rows", (Feature("x", DataType.FLOAT64),)))
        await _apply(self._client, source, view, FeatureSet("default", "xs", ("xs:x",)))

    async def write_rows(self, keys: Sequence[bytes], rows: Sequence[bytes], lifetime_ms: int) -> int:
        times = [struct.unpack_from("<qq", row, 1) for row in rows]
        pushed = await self._client.push(
            "views/xs",
            {
                "k": list(keys),
                "at": [moment(event) for event, _ in times],
                "made": [moment(created) for _, created in times],
                "x": self._layout.decode(rows).columns[0][0].tolist(),
            },
            {**SCHEMA, "made": fw.TIMESTAMP},
            to=pb.PUSH_TARGET_ONLINE,
        )
        return pushed.accepted_count

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        answer = await self._client.feature.GetOnlineFeatures(
            pb.GetOnlineFeaturesRequest(
                feature_set="projects/default/featureSets/xs",
                entities=to_table({"k": list(keys)}, {"k": fw.BYTES}),
            )
        )
        values = to_dict(answer.features)["xs__x"]
        return [
            None
            if value is None
            else self._layout.encode(
                {"x": (np.array([value]), np.ones(1, bool))}, np.array([START]), np.array([START])
            )[0]
            for value in values
        ]


class GrpcTiles:
    """Windows of x per entity: events are pushed to a stream source, a stream worker applies them."""

    def __init__(self, client: fw.Client, aggregations: Sequence[Aggregation], tile: int) -> None:
        self._client = client
        self._aggregations = aggregations
        self._view = View("default", "windows", "thing", StreamView("events", tuple(aggregations), "", tile))
        self._offsets: dict[int, Any] = {}

    async def apply(self) -> None:
        source = Source("default", "events", (KEY, TIME, X), "at", "", StreamSource())
        features = tuple(f"windows:{a.name}" for a in self._aggregations)
        await _apply(self._client, source, self._view, FeatureSet("default", "windows", features))

    async def push(self, key: bytes, places: list[int], minutes: list[int], ids: str) -> None:
        """Events at these places; place i lies at minutes[i] and has the value i, every fifth none."""
        answer = await self._client.push(
            "events",
            {
                "k": [key] * len(places),
                "at": [moment(START + minutes[i] * 60 * SECOND) for i in places],
                "x": [None if i % 5 == 4 else float(i) for i in places],
            },
            SCHEMA,
            ids=[f"{ids}{i}" for i in places],
        )
        self._offsets.update({o.partition: o for o in answer.offsets})

    async def windows(self, key: bytes, minute: int) -> list[Any]:
        await self._client.wait_applied(list(self._offsets.values()))
        answer = await self._client.feature.GetOnlineFeatures(
            pb.GetOnlineFeaturesRequest(
                feature_set="projects/default/featureSets/windows",
                entities=to_table({"k": [key]}, {"k": fw.BYTES}),
                as_of=moment(START + minute * 60 * SECOND),
            )
        )
        flat: list[Any] = []
        for (value,) in to_dict(answer.features).values():
            flat += value if isinstance(value, list) else [value]
        return flat
