"""The GRPCInferenceService of the Open Inference Protocol (KServe v2) over the use cases.

The messages are those of tritonclient (ADR 0042). Methods of Triton beyond the protocol, such as loading
models, are not served.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing
from importlib.metadata import version
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from flywheel_common.context import call_metadata
from flywheel_common.errors import FlywheelError
from flywheel_common.grpc.answer_stream import answered_in_order
from flywheel_common.grpc.leaving_error import leaving_error
from flywheel_inference.api import open_inference_rows as rows
from flywheel_inference.api.call_headers import priority_of
from flywheel_inference.api.counted_stream import counted_stream
from flywheel_inference.api.open_inference_tensors import infer_response, inputs_of, metadata
from flywheel_inference.api.row_answers import RowAnswers
from flywheel_inference.open_inference.address import address
from flywheel_inference.open_inference.raw_inference import (
    RawInference,
    raw_input_metadata,
    raw_output_metadata,
)
from flywheel_inference.open_inference.served import Served
from flywheel_inference.open_inference.tensor import NamedTensor
from flywheel_inference.prediction.bulk import BulkPredictor
from flywheel_inference.requests.bytes_in_flight import BytesInFlight
from flywheel_protos.inference.v1 import inference_pb2

SERVICE = "inference.GRPCInferenceService"
PLATFORM = "flywheel"
FINAL_RESPONSE = "triton_final_response"
WANTS_FINAL_RESPONSE = "triton_enable_empty_final_response"


class OpenInferenceServicer:
    """Converts requests, awaits the use case, converts the result."""

    def __init__(
        self,
        served: Served,
        raw: RawInference,
        bulk: BulkPredictor,
        answers: RowAnswers,
        budget: BytesInFlight,
        *,
        is_ready: Callable[[], bool],
        stream_in_flight: int,
        max_bytes: int,
    ) -> None:
        self._served = served
        self._raw = raw
        self._bulk = bulk
        self._answers = answers
        self._budget = budget
        self._is_ready = is_ready
        self._stream_in_flight = stream_in_flight
        self._max_bytes = max_bytes

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=self._served.ready(address(request.name, request.version)))

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Any
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=PLATFORM, version=version("flywheel-inference"))

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        at = address(request.name, request.version)
        response = pb.ModelMetadataResponse(name=request.name, platform=PLATFORM)
        if not at.model_version:
            champion = self._served.route(at.model).champion
            response.inputs.extend(metadata(rows.input_metadata(champion.contract)))
            response.outputs.extend(metadata(rows.output_metadata(champion.spec.signature.output)))
            response.versions.extend(self._served.versions(at.model))
            return response
        spec = self._served.version(at.model_version)
        response.inputs.extend(metadata(raw_input_metadata(spec)))
        response.outputs.extend(metadata([raw_output_metadata(spec)]))
        response.versions.append(at.version)
        return response

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        with self._budget.call() as held:
            held.take(request.ByteSize())
            return await self._infer(request)

    async def _infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        at = address(request.model_name, request.model_version)
        outputs = [output.name for output in request.outputs]
        if at.model_version:
            priority = priority_of(call_metadata())
            tensors = [await self._raw.infer(at.model_version, inputs_of(request), outputs, priority)]
        else:
            tensors = await self._predicted(at.model, inputs_of(request), outputs)
        return infer_response(request, tensors)

    async def ModelStreamInfer(
        self, requests: AsyncIterable[pb.ModelInferRequest], context: Any
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        async def answer(
            request: pb.ModelInferRequest, refusal: FlywheelError | None
        ) -> pb.ModelStreamInferResponse:
            response = pb.ModelStreamInferResponse()
            try:
                if refusal is not None:
                    raise refusal
                response.infer_response.CopyFrom(await self._infer(request))
            except Exception as error:  # noqa: BLE001 - the other requests of the stream are answered
                found = leaving_error(error, request)
                response.error_message = f"{found.reason}: {found.message}"
                response.infer_response.id = request.id
            wanted = request.parameters.get(WANTS_FINAL_RESPONSE)
            if wanted is not None and wanted.bool_param:
                response.infer_response.parameters[FINAL_RESPONSE].bool_param = True
            return response

        in_flight = self._stream_in_flight
        answers = counted_stream(
            requests, answer, self._budget, answered=answered_in_order, in_flight=in_flight
        )
        async with aclosing(answers):
            async for response in answers:
                yield response

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Any
    ) -> pb.RepositoryIndexResponse:
        response = pb.RepositoryIndexResponse()
        for entry in self._served.index():
            if entry.ready or not request.ready:
                state = "READY" if entry.ready else "UNAVAILABLE"
                response.models.add(name=entry.model, version=entry.version, state=state, reason=entry.reason)
        return response

    async def _predicted(
        self, model: str, inputs: list[NamedTensor], outputs: list[str]
    ) -> list[NamedTensor]:
        """The predictions of all rows. Raises the error of the first row that has none, after all rows."""
        champion = self._served.route(model).champion
        sent = rows.PredictionRows(model, inputs, champion.contract)
        output = champion.spec.signature.output
        wanted = rows.wanted_outputs(output, outputs, sent.count, self._max_bytes)
        results = await self._bulk.predict_each(
            range(sent.count),
            lambda row: self._answers.answer(lambda: sent.request(row)),
            refusal=lambda error: error,
            size_of=lambda _: 0,  # `wanted_outputs` has checked the size of the answer
        )
        answers: list[inference_pb2.PredictResponse] = []
        for row, result in enumerate(results):
            if isinstance(result, FlywheelError):
                result.metadata["row"] = str(row)
                raise result
            answers.append(result)
        return rows.output_tensors(answers, output, wanted)


def add_open_inference(servicer: OpenInferenceServicer, server: Any) -> None:
    """Registers the methods that the servicer has; the rest of Triton's service answers UNIMPLEMENTED."""
    handlers = {}
    for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        behavior = getattr(servicer, method.name, None)
        if behavior is not None:
            make = (
                grpc.stream_stream_rpc_method_handler
                if method.client_streaming
                else grpc.unary_unary_rpc_method_handler
            )
            handlers[method.name] = make(
                behavior,
                request_deserializer=getattr(pb, method.input_type.name).FromString,
                response_serializer=getattr(pb, method.output_type.name).SerializeToString,
            )
    server.add_registered_method_handlers(SERVICE, handlers)
