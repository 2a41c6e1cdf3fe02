"""Rows and windows at the gRPC edge: pushed by PushFeatures, read by GetOnlineFeatures."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import flywheel as fw
from flywheel.tables import to_dict, to_table
from flywheel_common.errors import InvalidArgument
from flywheel_common.value import from_micros
from flywheel_feature.api import convert_definitions
from flywheel_feature.definitions.model import (
    DataType,
    Entity,
    FeatureSet,
    Field,
    Source,
    StreamSource,
    StreamView,
    View,
)
from flywheel_protos.feature.v1 import definitions_pb2
from flywheel_protos.feature.v1 import feature_pb2 as pb
from tests.contract.feature.conftest import StreamWorkers
from tests.support.builders.tiles import AGGREGATIONS, TILE, event_time, event_value, windows_of_events

T0 = datetime(2013, 3, 1, tzinfo=UTC)


async def test_rows_are_returned_in_the_order_of_the_request(client: fw.Client) -> None:
    schema = {"k": fw.BYTES, "at": fw.TIMESTAMP, "known": fw.TIMESTAMP, "x": fw.FLOAT64}
    source = fw.ParquetSource("rows", schema, timestamp="at", created="known", uri="s3://nowhere/rows/")
    view = fw.BatchView("xs", fw.Entity("thing", {"k": fw.BYTES}), source, {"x": fw.FLOAT64})
    await client.apply(fw.compile_definitions([view, fw.FeatureSet("xs", ["xs:x"])], "default"))
    keys = [*(b"%02d" % i for i in range(80)), *(b"k" * n for n in (1, 511, 512, 70_000))]

    async def push(values: list[float], at: datetime, known: datetime) -> int:
        rows = {
            "k": keys[: len(values)],
            "at": [at] * len(values),
            "known": [known] * len(values),
            "x": values,
        }
        pushed = await client.push("views/xs", rows, schema, to=pb.PUSH_TARGET_ONLINE)
        return int(pushed.accepted_count)

    async def read(wanted: list[bytes]) -> list[float | None]:
        request = pb.GetOnlineFeaturesRequest(
            feature_set="projects/default/featureSets/xs", entities=to_table({"k": wanted}, {"k": fw.BYTES})
        )
        answer = await client.feature.GetOnlineFeatures(request)
        return to_dict(answer.features)["xs__x"]

    assert len(keys) == await push([float(i) for i in range(len(keys))], T0, T0)
    order = random.Random(3).sample(range(len(keys)), len(keys))
    wanted = [*(keys[i] for i in order), b"absent", keys[5], keys[5]]
    assert [*map(float, order), None, 5.0, 5.0] == await read(wanted)
    later = T0 + timedelta(hours=1)
    await push([100.0], T0, later)
    await push([200.0], T0, T0)
    assert [100.0] == await read(keys[:1]), "a row that was known earlier changes nothing"
    await push([300.0], T0, later)
    assert [300.0] == await read(keys[:1]), "of rows with equal times the last one is kept"


async def test_a_matrix_has_the_values_and_statuses_of_the_columns(client: fw.Client) -> None:
    features = {
        "x": fw.FLOAT64,
        "n": fw.INT64,
        "ok": fw.BOOL,
        "f": fw.FLOAT32,
        "e": fw.vector(2),
        "t": fw.STRING,
    }
    source = fw.ParquetSource(
        "numbers", {"k": fw.STRING, "at": fw.TIMESTAMP, **features}, timestamp="at", uri="s3://nowhere/rows/"
    )
    view = fw.BatchView("v", fw.Entity("thing", {"k": fw.STRING}), source, features, ttl=timedelta(days=1))
    numeric, texts = (
        fw.FeatureSet("numeric", ["v:f", "v:x", "v:e", "v:ok", "v:n"]),
        fw.FeatureSet("all", ["v:*"]),
    )
    await client.apply(fw.compile_definitions([view, numeric, texts], "default"))
    rows = {
        "k": ["full", "null", "old", "later"],
        "at": [T0, T0, T0 - timedelta(days=2), T0 + timedelta(days=2)],
        "x": [0.1, None, 1.0, 1.0],
        "n": [2**24 + 1, None, 1, 1],
        "ok": [True, None, True, True],
        "f": [0.5, None, 1.0, 1.0],
        "e": [[0.1, 2.0], None, [1.0, 1.0], [1.0, 1.0]],
        "t": ["a", "b", "c", "d"],
    }
    await client.push("views/v", rows, source.schema, to=pb.PUSH_TARGET_ONLINE)
    keys = {"k": ["later", "full", "absent", "old", "null"]}
    matrix = await client.online_matrix("numeric", keys, as_of=T0)
    assert ("v__f", "v__x", "v__e", "v__ok", "v__n") == matrix.names
    nan = float("nan")
    expected = np.array([[nan] * 6, [0.5, 0.1, 0.1, 2, 1, 2**24], *[[nan] * 6] * 3], np.float32)
    np.testing.assert_array_equal(expected, matrix.values)
    assert [[5, 1, 3, 4, 2]] * 5 == matrix.statuses.tolist()
    in_columns = await client.online_features("numeric", keys, as_of=T0)
    assert in_columns.statuses == matrix.statuses.tobytes()
    with pytest.raises(InvalidArgument) as caught:
        await client.online_matrix("all", keys, as_of=T0)
    assert ("WRONG_TYPE", "v__t") == (caught.value.reason, caught.value.metadata["column"])


async def test_pushes_in_any_order_give_the_windows_of_all_events(
    client: fw.Client, workers: StreamWorkers
) -> None:
    key, time, x = Field("k", DataType.BYTES), Field("at", DataType.TIMESTAMP), Field("x", DataType.FLOAT64)
    source = Source("default", "events", (key, time, x), "at", "", StreamSource())
    view = View("default", "windows", "thing", StreamView("events", tuple(AGGREGATIONS), "", TILE))
    features = FeatureSet("default", "windows", tuple(f"windows:{a.name}" for a in AGGREGATIONS))
    await client.apply(
        definitions_pb2.Definitions(
            entities=[convert_definitions.entity_to_proto(Entity("default", "thing", (key,)))],
            sources=[convert_definitions.source_to_proto(source)],
            views=[convert_definitions.view_to_proto(view)],
            feature_sets=[convert_definitions.feature_set_to_proto(features)],
        )
    )
    workers.start()
    offsets: dict[int, Any] = {}

    async def push(entity: bytes, numbers: list[int], minutes: list[int], prefix: str) -> None:
        rows = {
            "k": [entity] * len(numbers),
            "at": [from_micros(event_time(minutes[i])) for i in numbers],
            "x": [event_value(i) for i in numbers],
        }
        schema = {"k": fw.BYTES, "at": fw.TIMESTAMP, "x": fw.FLOAT64}
        answer = await client.push("events", rows, schema, ids=[f"{prefix}{i}" for i in numbers])
        offsets.update({o.partition: o for o in answer.offsets})

    async def read(entity: bytes, minute: int) -> list[Any]:
        request = pb.GetOnlineFeaturesRequest(
            feature_set="projects/default/featureSets/windows",
            entities=to_table({"k": [entity]}, {"k": fw.BYTES}),
            as_of=from_micros(event_time(minute)),
        )
        answer = await client.feature.GetOnlineFeatures(request)
        flat: list[Any] = []
        for (value,) in to_dict(answer.features).values():
            flat += value if isinstance(value, list) else [value]
        return flat

    for seed in range(4):
        chance = random.Random(seed)
        entity, prefix = f"k{seed}".encode(), f"{seed}/"
        minutes = [chance.randrange(0, 300) for _ in range(40)]
        shuffled = chance.sample(range(40), 40)
        cuts = sorted({0, 40, *(chance.randrange(40) for _ in range(6))})
        for low, high in pairwise(cuts):
            await push(entity, shuffled[low:high], minutes, prefix)
        await client.wait_applied(list(offsets.values()))
        for minute in (max(minutes), max(minutes) + 60):
            expected = windows_of_events(range(40), minutes, minute, prefix)
            found = await read(entity, minute)
            assert expected == pytest.approx(found, rel=1e-9, nan_ok=True), (seed, minute)
