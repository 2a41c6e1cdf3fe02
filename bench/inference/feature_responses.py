"""Decoding of feature responses and building of the model's tensor, once per batch of the gateway.

The other side is a response that would hold the tensor itself: float32 bytes and statuses, with the columns
that the prediction log needs made from it (ADR 0033).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np

from bench import measure
from flywheel_common import columns
from flywheel_common.scoring.feature_block import PRESENT, FeatureColumn
from flywheel_common.scoring.input_tensors import TensorBuilder
from flywheel_common.signature import FLOAT64, InputSpec, Signature
from flywheel_inference.releases.release import FeatureSetContract
from flywheel_inference.store.grpc.features import to_block
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import tensor_pb2

ROUNDS = 15
CALLS = 500
CONTRACT = FeatureSetContract("fs", (), ())


def run(only: str) -> Iterable[measure.Row]:
    for features in (10, 50):
        for rows in (1, 256):
            name = f"decode and build, {features} features, {rows} rows"
            if only in name:
                ours, theirs = _sides(features, rows)
                pairs = measure.alternating(ROUNDS, lambda o=ours: _micros(o), lambda t=theirs: _micros(t))
                yield measure.compared(name, "µs", "float32 tensor", pairs, None)


def _sides(features: int, rows: int) -> tuple[Callable[[], object], Callable[[], object]]:
    names = [f"view__f{i}" for i in range(features)]
    builder = TensorBuilder(Signature(tuple(InputSpec(name, FLOAT64) for name in names)))
    values = np.random.default_rng(0).random((rows, features))
    sent = [columns.from_numpy(name, values[:, i].copy()) for i, name in enumerate(names)]
    for column in sent:
        column.validity = b"\xff" * ((rows + 7) // 8)  # the feature service always sends it
    statuses = bytes([PRESENT]) * (features * rows)
    in_columns = pb.GetOnlineFeaturesResponse(
        features=columns.to_table(sent), statuses=statuses, feature_set="fs"
    ).SerializeToString()
    in_tensor = tensor_pb2.Tensor(
        shape=[rows, features], data=values.astype(np.float32).tobytes()
    ).SerializeToString()

    def of_columns() -> object:
        block = to_block(pb.GetOnlineFeaturesResponse.FromString(in_columns), CONTRACT, rows)
        return builder.build(block), builder.served(block)

    def of_tensor() -> object:
        tensor = tensor_pb2.Tensor.FromString(in_tensor)
        matrix = np.frombuffer(tensor.data, "<f4").reshape(rows, features)
        valid = np.frombuffer(statuses, np.uint8).reshape(features, rows) == PRESENT
        logged = [FeatureColumn(n, FLOAT64, v, ok) for n, v, ok in zip(names, matrix.T, valid, strict=True)]
        return matrix, logged

    return of_columns, of_tensor


def _micros(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - began) / CALLS * 1e6
