"""Predictions in batches and streams."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import grpc

from flywheel.connection import Connection
from flywheel_common.grpc.channel import from_rpc_error
from flywheel_common.value import from_python
from flywheel_protos.inference.v1 import inference_pb2

BATCH_REQUESTS = 10_000
Priority = Literal["low", "normal", "high"]
"""A busy gateway refuses lower ones first."""
PRIORITIES: dict[Priority, inference_pb2.Priority] = {
    "low": inference_pb2.PRIORITY_LOW,
    "normal": inference_pb2.PRIORITY_NORMAL,
    "high": inference_pb2.PRIORITY_HIGH,
}


class BulkPredictions(Connection):
    """Calls of the inference gateway with many requests."""

    def prediction_request(
        self,
        model: str,
        entity_keys: Mapping[str, Any],
        request_fields: Mapping[str, Any] | None = None,
        *,
        as_of: datetime | None = None,
        subject: str = "",
        prediction_id: str = "",
        priority: Priority = "normal",
    ) -> inference_pb2.PredictRequest:
        """The request of one prediction, for `predict_batch` and `predict_stream`; the arguments are those of
        `predict`."""
        request = inference_pb2.PredictRequest(
            model=self.path("models", model),
            entity_keys={name: from_python(value) for name, value in entity_keys.items()},
            request_fields={name: from_python(value) for name, value in (request_fields or {}).items()},
            subject=subject,
            prediction_id=prediction_id,
            priority=PRIORITIES[priority],
        )
        if as_of is not None:
            request.as_of.FromDatetime(as_of)
        return request

    async def predict_batch(
        self, requests: Sequence[inference_pb2.PredictRequest], *, timeout: float | None = None
    ) -> list[inference_pb2.PredictResult]:
        """One result per request, in order: `response`, or `error` when Predict would have failed; the others
        are not affected. Sends 10,000 requests per call; `timeout` is that of one call."""
        results: list[inference_pb2.PredictResult] = []
        for start in range(0, len(requests), BATCH_REQUESTS):
            batch = inference_pb2.BatchPredictRequest(requests=requests[start : start + BATCH_REQUESTS])
            results.extend((await self.inference.BatchPredict(batch, timeout=timeout)).results)
        return results

    async def predict_stream(
        self, requests: AsyncIterable[tuple[str, inference_pb2.PredictRequest]]
    ) -> AsyncIterator[tuple[str, inference_pb2.PredictResult]]:
        """The result of each (id, request) as soon as it is ready, with the id. The gateway reads requests
        only as fast as it answers and the answers are read."""

        async def wrapped() -> AsyncIterator[inference_pb2.StreamPredictRequest]:
            async for id_, request in requests:
                yield inference_pb2.StreamPredictRequest(id=id_, request=request)

        try:
            async for answer in self.inference.StreamPredict(wrapped()):
                yield answer.id, answer.result
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
