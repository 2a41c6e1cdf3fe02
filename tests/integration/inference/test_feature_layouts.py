"""A gateway answers and logs the same whether features come as columns or as one float32 matrix."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest

from flywheel_common import columns
from flywheel_common.kafka import topics
from flywheel_protos.feature.v1 import definitions_pb2, feature_pb2, feature_tensor_pb2
from flywheel_protos.types.v1 import value_pb2 as types
from tests.support.builders.inference import FEATURE_SET, expected_score
from tests.support.peers.inference import FeatureServicer, feature_server
from tests.support.servers.inference import MemoryDeployment

W = (0.5, -0.25, 1.0)
SCHEMA = [
    types.Field(name="hist__delay", data_type=types.DATA_TYPE_FLOAT32),
    types.Field(name="trip__miles", data_type=types.DATA_TYPE_FLOAT32),
    types.Field(name="trip__late", data_type=types.DATA_TYPE_BOOL),
]
DELAYS = {"UA": (0.1, 1), "DL": (-1.0, 4), "AA": (0.0, 2), "XX": (0.0, 5)}
"""Carrier → delay and its status: PRESENT, STALE, NULL, NOT_YET_VALID."""
CALLS = [(carrier, 0.3 * i) for i, carrier in enumerate([*DELAYS, "ZZ", *DELAYS, "ZZ", "UA"])]


class Float32Features(FeatureServicer):
    """Features of float32 and bool: the delay from DELAYS, the request's miles, and whether they are > 1.
    `knows_tensors` False: a feature service from before the layout, which answers in columns."""

    def __init__(self, *, knows_tensors: bool) -> None:
        super().__init__()
        self.knows_tensors = knows_tensors
        self.layouts: set[int] = set()

    async def GetFeatureSet(self, request: Any, context: Any) -> Any:
        answer = await super().GetFeatureSet(request, context)
        del answer.feature_set.schema[:]
        answer.feature_set.schema.extend(SCHEMA)
        assert isinstance(answer.feature_set, definitions_pb2.FeatureSet)
        return answer

    async def GetOnlineFeatures(self, request: Any, context: Any) -> Any:
        self.layouts.add(request.layout)
        carriers = list(columns.from_table(request.entities)["carrier"][0])
        miles = columns.from_table(request.request_fields)["miles"][0].astype(np.float32)
        rows = len(carriers)
        found = [DELAYS.get(carrier, (0.0, 3)) for carrier in carriers]
        delays = np.array([delay for delay, _ in found], np.float32)
        statuses = np.ones((3, rows), np.uint8)
        statuses[0] = [status for _, status in found]
        answer = feature_pb2.GetOnlineFeaturesResponse(
            statuses=statuses.tobytes(),
            feature_set=FEATURE_SET,
            applied_offsets=columns.to_table(
                [columns.from_lists("hist@1", [[0, int(10 * m)] for m in miles], types.DATA_TYPE_INT64_LIST)]
            ),
        )
        if request.layout == feature_pb2.ANSWER_LAYOUT_TENSOR and self.knows_tensors:
            matrix = np.array([np.where(statuses[0] == 1, delays, np.nan), miles, miles > 1], "<f4").T
            answer.tensor.CopyFrom(
                feature_tensor_pb2.FeatureTensor(row_count=rows, schema=SCHEMA, values=matrix.tobytes())
            )
            return answer
        valid = (statuses[0] == 1) | (statuses[0] == 4)
        found_columns = [
            columns.from_numpy("hist__delay", delays, valid),
            columns.from_numpy("trip__miles", miles),
            columns.from_numpy("trip__late", miles > 1),
        ]
        answer.features.CopyFrom(columns.to_table(found_columns))
        return answer


async def answers_and_log(*, knows_tensors: bool) -> tuple[list[Any], list[Any], set[int]]:
    """The answers to CALLS without times and ids, their log rows, and the layouts that were asked for."""
    async with AsyncExitStack() as stack:
        deployment = MemoryDeployment(stack)
        servicer = Float32Features(knows_tensors=knows_tensors)
        deployment.features, deployment.feature_server = servicer, feature_server(servicer)
        await deployment.start()
        release = deployment.registry.release(1, W, inputs=tuple(field.name for field in SCHEMA))
        for spec, field in zip(release.model_version.signature.inputs, SCHEMA, strict=True):
            spec.data_type = field.data_type
        gateway = await deployment.gateway_serving(release)
        answers = await asyncio.gather(
            *(gateway.predict(c, m, include_features=True, as_of={"seconds": 9_000}) for c, m in CALLS)
        )
        found = await deployment.logged(topics.PREDICTION_LOGGED, {a.prediction_id for a in answers})
        rows = []
        for answer in answers:
            ((_, batch, row),) = found[answer.prediction_id]
            logged: list[Any] = [
                np.frombuffer(batch.scores, "<f8")[row],
                batch.sources[row],
                batch.decisions[row],
            ]
            for column in (*batch.features.columns, *batch.applied_offsets.columns):
                values, valid = columns.to_numpy(column, len(batch.prediction_ids))
                logged += [column.name, column.data_type, np.asarray(values[row]).tolist(), bool(valid[row])]
            rows.append(logged)
            answer.ClearField("prediction_id")
            answer.ClearField("timing")
        return answers, rows, servicer.layouts


async def test_answers_statuses_and_log_rows_are_equal_in_both_layouts() -> None:
    answers, rows, asked = await answers_and_log(knows_tensors=True)
    assert {feature_pb2.ANSWER_LAYOUT_TENSOR} == asked
    in_columns = await answers_and_log(knows_tensors=False)
    assert list(map(str, in_columns[0])) == list(map(str, answers))
    assert in_columns[1] == rows
    statuses = {1: "PRESENT", 2: "NULL", 3: "NOT_FOUND", 4: "STALE", 5: "NOT_YET_VALID"}
    for (carrier, miles), answer in zip(CALLS, answers, strict=True):
        delay, status = DELAYS.get(carrier, (0.0, 3))
        inputs = [
            np.float32(delay) if status == 1 else np.nan,
            np.float32(miles),
            float(np.float32(miles) > 1),
        ]
        assert expected_score(W, 0.0, inputs) == pytest.approx(answer.score, abs=1e-5)
        assert not answer.degraded
        assert {f.name: f.status for f in answer.features}["hist__delay"] == statuses[status]
