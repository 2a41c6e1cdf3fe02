"""The InferenceService over the use cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flywheel_common.event_time import EventTimeBound
from flywheel_inference.api.convert_requests import ProtoCall, outcome_rows
from flywheel_inference.api.convert_responses import to_response, to_status_response
from flywheel_inference.outcomes.recorder import OutcomeRecorder
from flywheel_inference.prediction.predictor import Predictor
from flywheel_inference.prediction_log.buffer import PredictionLog
from flywheel_inference.serving.state import ServingState
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.inference.v1 import inference_pb2_grpc


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Converts requests, awaits the use case, converts the result."""

    def __init__(
        self,
        predictor: Predictor,
        outcomes: OutcomeRecorder,
        serving: ServingState,
        log: PredictionLog,
        *,
        gateway_id: str,
        now_micros: Callable[[], int],
        event_times: EventTimeBound,
    ) -> None:
        self._predictor = predictor
        self._outcomes = outcomes
        self._serving = serving
        self._log = log
        self._gateway_id = gateway_id
        self._now_micros = now_micros
        self._event_times = event_times

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        return to_response(await self._predictor.predict(ProtoCall(request, self._event_times)))

    async def RecordOutcome(self, request: pb.RecordOutcomeRequest, context: Any) -> pb.RecordOutcomeResponse:
        rows = outcome_rows(request.outcomes, self._now_micros(), self._event_times)
        return pb.RecordOutcomeResponse(accepted_count=await self._outcomes.record(request.model, rows))

    async def GetServingStatus(
        self, request: pb.GetServingStatusRequest, context: Any
    ) -> pb.GetServingStatusResponse:
        return to_status_response(
            self._gateway_id, self._serving.statuses(), self._log.logged_count, self._log.dropped_count
        )
