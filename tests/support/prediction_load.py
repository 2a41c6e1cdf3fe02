"""Predictions sent at a constant rate, whatever the answers: how each call ended, and how long it took.

`python -m tests.support.prediction_load ADDRESS RATE SECONDS DEADLINE FILE` writes the calls to a file.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from flywheel_common.grpc.error_details import from_rpc_error
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.builders.inference import MODEL

_SOURCES = {
    prediction_pb2.PREDICTION_SOURCE_MODEL: "model",
    prediction_pb2.PREDICTION_SOURCE_CACHED: "cached",
    prediction_pb2.PREDICTION_SOURCE_DEFAULT: "default",
}
DEGRADED = ("cached", "default")


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `sent`: on time.monotonic. `outcome`: model, cached, default, or the code of its error.
    `labelled`: the answer is degraded exactly when the model did not give it. `reason`: why it
    is, or the error."""

    sent: float
    seconds: float
    outcome: str
    labelled: bool = True
    retry_seconds: float = 0.0
    reason: str = ""

    @property
    def answered(self) -> bool:
        return self.outcome in ("model", *DEGRADED)


def predict_request(number: int, model: str = MODEL) -> inference_pb2.PredictRequest:
    return inference_pb2.PredictRequest(
        model=model,
        entity_keys={"carrier": Value(string_value="UA")},
        request_fields={"miles": Value(double_value=float(number % 7)), "origin": Value(string_value="JFK")},
    )


class PredictionLoad:
    """Calls at `rate` per second over some channels in turn, until `stop`."""

    def __init__(
        self,
        channels: Sequence[grpc.aio.Channel],
        *,
        rate: float,
        deadline: float = 1.0,
        make_request: Callable[[int], inference_pb2.PredictRequest] = predict_request,
    ) -> None:
        self._stubs = itertools.cycle([inference_pb2_grpc.InferenceServiceStub(one) for one in channels])
        self._rate = rate
        self._deadline = deadline
        self._make_request = make_request
        self._stopped = False
        self.calls: list[Call] = []

    def stop(self) -> None:
        self._stopped = True

    async def run(self) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                if self._stopped:
                    return
                wait = began + number / self._rate - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                elif number % 16 == 0:
                    await asyncio.sleep(0)
                group.create_task(self._call(number))

    async def run_for(self, seconds: float) -> Sequence[Call]:
        """Runs for some time; returns the calls that it added."""
        before = len(self.calls)
        self._stopped = False
        asyncio.get_running_loop().call_later(seconds, self.stop)
        await self.run()
        return self.calls[before:]

    async def _call(self, number: int) -> None:
        request, sent = self._make_request(number), time.monotonic()
        try:
            answer = await next(self._stubs).Predict(request, timeout=self._deadline)
        except grpc.aio.AioRpcError as error:
            failure: Any = from_rpc_error(error)
            retry = float(getattr(failure, "retry_after_seconds", 0.0))
            seconds, reason = time.monotonic() - sent, f"{failure.reason}: {failure.message}"
            self.calls.append(Call(sent, seconds, error.code().name, True, retry, reason))
            return
        outcome = _SOURCES.get(answer.source, "?")
        labelled = answer.degraded == (outcome in DEGRADED) == bool(answer.degraded_reason)
        seconds = time.monotonic() - sent
        self.calls.append(Call(sent, seconds, outcome, labelled, reason=answer.degraded_reason))


def outcomes(calls: Iterable[Call]) -> Counter[str]:
    return Counter(call.outcome for call in calls)


def per_second(calls: Sequence[Call]) -> float:
    """Calls per second of the time in which they were sent."""
    return len(calls) / max(calls[-1].sent - calls[0].sent, 1e-9)


def p99_ms(calls: Iterable[Call]) -> float:
    found = [call.seconds for call in calls]
    return float(np.percentile(found, 99)) * 1e3 if found else float("nan")


def sent_in(calls: Iterable[Call], phases: Sequence[tuple[float, float]]) -> list[Call]:
    """The calls that were sent in one of these spans of time.monotonic."""
    return [call for call in calls if any(begin <= call.sent < end for begin, end in phases)]


async def _calls(address: str, rate: float, seconds: float, deadline: float) -> Sequence[Call]:
    async with grpc.aio.insecure_channel(address) as channel:
        return await PredictionLoad([channel], rate=rate, deadline=deadline).run_for(seconds)


async def separate_load(address: str, *, rate: float, seconds: float, deadline: float = 1.0) -> list[Call]:
    """The calls of a load in a process of its own, which the event loop of the test does not delay."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calls.json"
        numbers = map(str, (rate, seconds, deadline))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.prediction_load", address, *numbers, file
        )
        assert 0 == await process.wait()
        return [Call(**call) for call in json.loads(file.read_text())]


if __name__ == "__main__":
    address, *numbers, file = sys.argv[1:]
    found = asyncio.run(_calls(address, *map(float, numbers)))
    Path(file).write_text(json.dumps([asdict(call) for call in found]))
