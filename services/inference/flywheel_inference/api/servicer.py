"""The InferenceService over the use cases."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from flywheel_common.errors import FlywheelError
from flywheel_common.event_time import EventTimeBound
from flywheel_common.grpc.answer_stream import answered_when_ready
from flywheel_inference.api.convert_requests import outcome_rows, predict_call
from flywheel_inference.api.convert_responses import to_response, to_result, to_status_response
from flywheel_inference.api.counted_stream import counted_stream
from flywheel_inference.api.row_answers import RowAnswers
from flywheel_inference.outcomes.recorder import OutcomeRecorder
from flywheel_inference.prediction.bulk import BulkPredictor
from flywheel_inference.prediction.predictor import Predictor
from flywheel_inference.prediction_log.buffer import PredictionLog
from flywheel_inference.requests.bytes_in_flight import BytesInFlight
from flywheel_inference.serving.state import ServingState
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.inference.v1 import inference_pb2_grpc

COPIED_AT_ONCE = 250
"""Results that are added to the response of a batch in one turn."""


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Converts requests, awaits the use case, converts the result."""

    def __init__(
        self,
        predictor: Predictor,
        bulk: BulkPredictor,
        rows: RowAnswers,
        budget: BytesInFlight,
        outcomes: OutcomeRecorder,
        serving: ServingState,
        log: PredictionLog,
        *,
        gateway_id: str,
        now_micros: Callable[[], int],
        event_times: EventTimeBound,
        stream_in_flight: int,
    ) -> None:
        self._predictor = predictor
        self._bulk = bulk
        self._rows = rows
        self._budget = budget
        self._stream_in_flight = stream_in_flight
        self._outcomes = outcomes
        self._serving = serving
        self._log = log
        self._gateway_id = gateway_id
        self._now_micros = now_micros
        self._event_times = event_times

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        return to_response(await self._predictor.predict(predict_call(request, self._event_times)))

    async def BatchPredict(self, request: pb.BatchPredictRequest, context: Any) -> pb.BatchPredictResponse:
        async def answer(one: pb.PredictRequest) -> pb.PredictResult:
            return to_result(await self._rows.answer(lambda: _of_model(one, request.model)))

        response = pb.BatchPredictResponse()
        with self._bulk.batch(len(request.requests)), self._budget.call() as held:
            held.take(request.ByteSize())
            results = await self._bulk.predict_each(
                request.requests, answer, refusal=to_result, size_of=pb.PredictResult.ByteSize
            )
            results.reverse()
            while results:
                # Copying and freeing all of them at once would hold the event loop for milliseconds.
                await self._bulk.turn()
                response.results.extend([results.pop() for _ in range(min(COPIED_AT_ONCE, len(results)))])
        return response

    async def StreamPredict(
        self, requests: AsyncIterable[pb.StreamPredictRequest], context: Any
    ) -> AsyncIterator[pb.StreamPredictResponse]:
        async def answer(
            request: pb.StreamPredictRequest, refusal: FlywheelError | None
        ) -> pb.StreamPredictResponse:
            answered = refusal or await self._rows.answer(lambda: request.request)
            result = to_result(answered)
            return pb.StreamPredictResponse(id=request.id, result=result)

        in_flight = self._stream_in_flight
        answers = counted_stream(
            requests, answer, self._budget, answered=answered_when_ready, in_flight=in_flight
        )
        async with aclosing(answers):
            async for response in answers:
                yield response

    async def RecordOutcome(self, request: pb.RecordOutcomeRequest, context: Any) -> pb.RecordOutcomeResponse:
        rows = outcome_rows(request.outcomes, self._now_micros(), self._event_times)
        return pb.RecordOutcomeResponse(accepted_count=await self._outcomes.record(request.model, rows))

    async def GetServingStatus(
        self, request: pb.GetServingStatusRequest, context: Any
    ) -> pb.GetServingStatusResponse:
        return to_status_response(
            self._gateway_id, self._serving.statuses(), self._log.logged_count, self._log.dropped_count
        )


def _of_model(request: pb.PredictRequest, model: str) -> pb.PredictRequest:
    """The request; one without a model is for `model`, that of its batch."""
    request.model = request.model or model
    return request
