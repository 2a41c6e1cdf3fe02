"""Feature responses, once per batch of the gateway: encoding in the feature service, decoding and building
of the model's tensor.

The sides are the two layouts of the feature service (ADR 0087): columns, and the TENSOR layout, which the
gateway asks for when all features are FLOAT32 or BOOL. Both include the columns of the prediction log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bench import measure
from flywheel_common import columns
from flywheel_common.scoring.feature_block import PRESENT
from flywheel_common.scoring.input_tensors import TensorBuilder
from flywheel_common.signature import FLOAT32, FLOAT64, InputSpec, Signature
from flywheel_feature.api.answer_encoding import AnswerEncoder
from flywheel_feature.api.tensor_encoding import TensorEncoder
from flywheel_feature.definitions.model import BatchView, DataType, Feature, View
from flywheel_feature.encoding.row_encoding import RowLayout
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec
from flywheel_inference.store.grpc.features import to_block
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.feature.v1 import feature_tensor_pb2
from flywheel_protos.types.v1 import value_pb2
from tests.support.builders.feature_units import plan_of_view

ROUNDS = 15
CALLS = 500
NUMPY: dict[int, Any] = {FLOAT32: np.float32, FLOAT64: np.float64}


def run(only: str) -> Iterable[measure.Row]:
    for kind, data_type in (("FLOAT64", FLOAT64), ("FLOAT32", FLOAT32)):
        for features in (10, 50):
            for rows in (1, 256):
                name = f"decode and build, {features} {kind} features in columns, {rows} rows"
                if only in name:
                    ours, theirs = _built(features, rows, data_type)
                    pairs = measure.alternating(
                        ROUNDS, lambda o=ours: _micros(o), lambda t=theirs: _micros(t)
                    )
                    yield measure.compared(name, "µs", "TENSOR layout", pairs, None)
                name = f"encode, {features} {kind} features in columns, {rows} rows"
                if only in name:
                    ours, theirs = _encoded(features, rows, data_type)
                    pairs = measure.alternating(
                        ROUNDS, lambda o=ours: _micros(o), lambda t=theirs: _micros(t)
                    )
                    yield measure.compared(name, "µs", "TENSOR layout", pairs, None)


def _encoded(features: int, rows: int, data_type: int) -> tuple[Callable[[], object], Callable[[], object]]:
    of_view = tuple(Feature(f"f{i}", DataType(data_type)) for i in range(features))
    plan = plan_of_view(View("default", "view", "e", BatchView("s", of_view), version=1, features=of_view))
    values = np.random.default_rng(0).random((features, rows)).astype(NUMPY[data_type])
    stored = {f.name: (column, np.ones(rows, np.bool_)) for f, column in zip(of_view, values, strict=True)}
    times = np.ones(rows, np.int64)
    blobs = RowLayout(of_view).encode(stored, times, times)
    in_columns, in_tensor = AnswerEncoder(plan), TensorEncoder(plan)
    answer = plan.decode(blobs, times, {})
    return lambda: in_columns.encode_parts(answer, [rows]), lambda: in_tensor.encode_parts(answer, [rows])


def _built(features: int, rows: int, data_type: int) -> tuple[Callable[[], object], Callable[[], object]]:
    names = [f"view__f{i}" for i in range(features)]
    builder = TensorBuilder(Signature(tuple(InputSpec(name, data_type) for name in names)))
    contract = FeatureSetContract("fs", (), (), tuple(FieldSpec(name, FLOAT32) for name in names))
    values = np.random.default_rng(0).random((rows, features)).astype(NUMPY[data_type])
    sent = [columns.from_numpy(name, values[:, i].copy()) for i, name in enumerate(names)]
    for column in sent:
        column.validity = b"\xff" * ((rows + 7) // 8)  # the feature service always sends it
    statuses = bytes([PRESENT]) * (features * rows)
    in_columns = pb.GetOnlineFeaturesResponse(
        features=columns.to_table(sent), statuses=statuses, feature_set="fs"
    ).SerializeToString()
    tensor = feature_tensor_pb2.FeatureTensor(
        row_count=rows,
        schema=[value_pb2.Field(name=name, data_type=value_pb2.DATA_TYPE_FLOAT32) for name in names],
        values=values.astype(np.float32).tobytes(),
    )
    in_tensor = pb.GetOnlineFeaturesResponse(
        tensor=tensor, statuses=statuses, feature_set="fs"
    ).SerializeToString()

    def built(response: bytes) -> Callable[[], object]:
        def call() -> object:
            block = to_block(pb.GetOnlineFeaturesResponse.FromString(response), contract, rows)
            return builder.build(block), builder.served(block)

        return call

    return built(in_columns), built(in_tensor)


def _micros(call: Callable[[], object]) -> float:
    """CPU time of a call: other processes do not change it much."""
    began = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - began) / CALLS * 1e6
