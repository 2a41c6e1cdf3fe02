"""The feature service: contracts of feature sets, and online features in columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from flywheel_common import columns
from flywheel_common.errors import Internal
from flywheel_common.grpc.channel import from_rpc_error
from flywheel_inference.encoding.typed_columns import table
from flywheel_inference.models.feature_block import STALE, FeatureBlock, FeatureColumn
from flywheel_inference.releases.release import (
    Contract,
    FieldSpec,
)
from flywheel_protos.feature.v1 import definitions_pb2, feature_pb2_grpc
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import column_pb2


class FeatureService:
    """`scoring.FeatureLookup` and `release_loader.Contracts` over the feature service's stub."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = feature_pb2_grpc.FeatureServiceStub(channel)

    async def contract(self, feature_set: str, timeout: float = 5.0) -> Contract:
        """Raises NotFound UNKNOWN_FEATURE_SET, Unavailable."""
        try:
            response = await self._stub.GetFeatureSet(
                pb.GetFeatureSetRequest(name=feature_set), timeout=timeout
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return contract_of(response.feature_set, feature_set)

    async def online(
        self,
        contract: Contract,
        keys: Sequence[tuple[Any, ...]],
        fields: Sequence[tuple[Any, ...]],
        as_of_micros: int | None,
        timeout: float,
    ) -> FeatureBlock:
        request = pb.GetOnlineFeaturesRequest(
            feature_set=contract.feature_set,
            entities=table(keys, contract.join_keys),
            layout=pb.ANSWER_LAYOUT_COLUMNS,
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
        return _block(response, contract, len(keys))


def _fresh(columns: tuple[FeatureColumn, ...], statuses: npt.NDArray[np.uint8]) -> tuple[FeatureColumn, ...]:
    """A value older than its view's TTL is null for the model, as it is in a training set."""
    stale = statuses == STALE
    if not stale.any():
        return columns
    return tuple(replace(c, valid=c.valid & ~old) for c, old in zip(columns, stale, strict=True))


def _block(response: pb.GetOnlineFeaturesResponse, contract: Contract, rows: int) -> FeatureBlock:
    answered = response.features.columns
    if len(response.statuses) != len(answered) * rows:
        raise Internal(
            f"The feature service answered {len(response.statuses)} statuses for {len(answered)} features of {rows} rows."
        )
    statuses = np.frombuffer(response.statuses, np.uint8).reshape(len(answered), rows)
    return FeatureBlock(
        response.feature_set or contract.feature_set,
        _fresh(_columns(answered, rows), statuses),
        statuses,
        _columns(response.applied_offsets.columns, rows),
    )


def _columns(answered: Iterable[column_pb2.Column], rows: int) -> tuple[FeatureColumn, ...]:
    return tuple(
        FeatureColumn(column.name, column.data_type, *columns.to_numpy(column, rows)) for column in answered
    )


def contract_of(feature_set: definitions_pb2.FeatureSet, name: str) -> Contract:
    """What a caller must send; `name` is the versioned name that the release cites."""
    return Contract(
        feature_set=name,
        join_keys=tuple(FieldSpec(f.name, f.data_type) for f in feature_set.join_keys),
        request_fields=tuple(FieldSpec(f.name, f.data_type) for f in feature_set.request_fields),
    )
