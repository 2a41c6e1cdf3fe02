"""The feature service over gRPC: contracts of feature sets, and online features.

They are read as one float32 matrix if float32 holds every value of their types, else in columns (ADR 0087).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from flywheel_common import columns
from flywheel_common.arrays import Array, Mask
from flywheel_common.errors import Internal
from flywheel_common.grpc.channel import from_rpc_error
from flywheel_common.scoring.feature_block import (
    NOT_YET_VALID,
    PRESENT,
    STALE,
    FeatureBlock,
    FeatureColumn,
)
from flywheel_common.signature import BOOL
from flywheel_inference.encoding.typed_columns import table
from flywheel_inference.releases.release import FeatureSetContract, FieldSpec
from flywheel_protos.feature.v1 import definitions_pb2, feature_pb2_grpc
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import column_pb2


class GrpcFeatures:
    """`scoring.FeatureLookup` and `models.FeatureSetContracts`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = feature_pb2_grpc.FeatureServiceStub(channel)

    async def contract(self, feature_set: str, timeout: float = 5.0) -> FeatureSetContract:
        """Raises NotFound UNKNOWN_FEATURE_SET, Unavailable."""
        try:
            response = await self._stub.GetFeatureSet(
                pb.GetFeatureSetRequest(name=feature_set), timeout=timeout
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return to_contract(response.feature_set, feature_set)

    async def online(
        self,
        contract: FeatureSetContract,
        keys: Sequence[tuple[Any, ...]],
        fields: Sequence[tuple[Any, ...]],
        as_of_micros: int | None,
        timeout: float,
    ) -> FeatureBlock:
        request = pb.GetOnlineFeaturesRequest(
            feature_set=contract.feature_set,
            entities=table(keys, contract.join_keys),
            layout=pb.ANSWER_LAYOUT_TENSOR if contract.float32_elements else pb.ANSWER_LAYOUT_COLUMNS,
            with_applied_offsets=True,
        )
        if contract.request_fields:
            request.request_fields.CopyFrom(table(fields, contract.request_fields))
        if as_of_micros is not None:
            request.as_of.FromMicroseconds(as_of_micros)
        try:
            response = await self._stub.GetOnlineFeatures(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return to_block(response, contract, len(keys))


def to_contract(feature_set: definitions_pb2.FeatureSet, name: str) -> FeatureSetContract:
    """`name` is the name by which the release refers to the feature set."""
    return FeatureSetContract(
        feature_set=name,
        join_keys=tuple(FieldSpec(f.name, f.data_type) for f in feature_set.join_keys),
        request_fields=tuple(
            FieldSpec(f.name, f.data_type, f.vector_size) for f in feature_set.request_fields
        ),
        # Without a version in `name`, the features may change with the next one.
        features=tuple(FieldSpec(f.name, f.data_type, f.vector_size) for f in feature_set.schema)
        if feature_set.name == name
        else (),
    )


def to_block(response: pb.GetOnlineFeaturesResponse, contract: FeatureSetContract, rows: int) -> FeatureBlock:
    """A response for `rows` entities. A STALE or NOT_YET_VALID value becomes null for the model, as it
    is in a training set."""
    in_tensor = response.HasField("tensor")
    features = len(contract.features) if in_tensor else len(response.features.columns)
    received = response.statuses
    if len(received) != features * rows:
        raise Internal(
            f"The feature service returned {len(received)} statuses for {features} features of {rows} rows."
        )
    statuses = np.frombuffer(received, np.uint8).reshape(features, rows)
    matrix = _matrix(response, contract, rows) if in_tensor else None
    return FeatureBlock(
        response.feature_set or contract.feature_set,
        _valid_only(_columns(response.features.columns, rows), statuses)
        if matrix is None
        else _views(matrix, contract.features, statuses == PRESENT),
        statuses,
        _columns(response.applied_offsets.columns, rows),
        matrix,
    )


def _matrix(
    response: pb.GetOnlineFeaturesResponse, contract: FeatureSetContract, rows: int
) -> npt.NDArray[np.float32]:
    values, elements = response.tensor.values, contract.float32_elements
    if response.feature_set != contract.feature_set or len(values) != 4 * rows * elements:
        raise Internal(
            f"The feature service returned {len(values)} bytes of {response.feature_set} "
            f"for {rows} rows with {elements} elements of {contract.feature_set}."
        )
    return np.frombuffer(values, "<f4").reshape(rows, elements)


def _views(
    matrix: npt.NDArray[np.float32], features: Sequence[FieldSpec], valid: Mask
) -> tuple[FeatureColumn, ...]:
    """The columns of the matrix without copies, except of truth values."""
    elements: list[Array] = list(matrix.T)
    found: list[FeatureColumn] = []
    start = 0
    for feature, mask in zip(features, valid, strict=True):
        end = start + (feature.vector_size or 1)
        values = matrix[:, start:end] if feature.vector_size else elements[start]
        if feature.data_type == BOOL:
            values = values > 0  # False for NaN
        found.append(FeatureColumn(feature.name, feature.data_type, values, mask))
        start = end
    return tuple(found)


def _valid_only(
    columns: tuple[FeatureColumn, ...], statuses: npt.NDArray[np.uint8]
) -> tuple[FeatureColumn, ...]:
    received = statuses.tobytes()
    if STALE not in received and NOT_YET_VALID not in received:
        return columns
    invalid = (statuses == STALE) | (statuses == NOT_YET_VALID)
    return tuple(replace(c, valid=c.valid & ~rows) for c, rows in zip(columns, invalid, strict=True))


def _columns(received: Sequence[column_pb2.Column], rows: int) -> tuple[FeatureColumn, ...]:
    if not received:
        return ()
    found = columns.all_to_numpy(received, rows)
    return tuple(
        [
            FeatureColumn(column.name, column.data_type, values, valid)
            for column, (values, valid) in zip(received, found, strict=True)
        ]
    )
