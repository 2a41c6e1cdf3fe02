"""The answer to one of several requests of a call: a response, or an error that is its alone."""

from __future__ import annotations

from collections.abc import Callable

from flywheel_common.errors import FlywheelError
from flywheel_common.event_time import EventTimeBound
from flywheel_common.grpc.leaving_error import leaving_error
from flywheel_inference.api.convert_requests import ProtoCall, predict_call
from flywheel_inference.api.convert_responses import to_response
from flywheel_inference.prediction.bulk import BulkPredictor
from flywheel_protos.inference.v1 import inference_pb2 as pb


class RowAnswers:
    """Answers requests with a BulkPredictor."""

    def __init__(self, bulk: BulkPredictor, event_times: EventTimeBound) -> None:
        self._bulk = bulk
        self._event_times = event_times

    async def answer(
        self, make_request: Callable[[], pb.PredictRequest]
    ) -> pb.PredictResponse | FlywheelError:
        """The answer of Predict to a request, which is made when there is a place for it."""
        made: list[pb.PredictRequest] = []

        def call() -> ProtoCall:
            made.append(make_request())
            return predict_call(made[0], self._event_times)

        try:
            return to_response(await self._bulk.predict(call))
        except Exception as error:  # noqa: BLE001 - the other requests of the call are answered
            return leaving_error(error, made[0] if made else None)
