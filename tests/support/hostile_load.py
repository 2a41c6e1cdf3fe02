"""Healthy callers of a gateway beside hostile ones: short deadlines, wrong types, large fields, bad rows.

Phases with and without the other calls alternate in one run, so that the p99 of the healthy ones compares.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median

import grpc

from flywheel_inference.config import InferenceSettings
from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from flywheel_protos.types.v1.value_pb2 import Value, ValueList
from tests.support.builders.inference import MODEL
from tests.support.prediction_load import Call, p99_ms, predict_request, sent_in, separate_load

HEALTHY, HOSTILE = 300.0, 200.0
PHASE_SECONDS = 4.0
SHORT_SECONDS = 0.006
LARGE_BYTES = 15 * 1024 * 1024
LARGEST_ACCEPTED = InferenceSettings.model_fields["max_message_bytes"].default - 1024
"""Size of a field whose message the transport still accepts; the limit of `Predict` refuses it afterwards."""
PREDICT = "/flywheel.inference.v1.InferenceService/Predict"
BATCH_ROWS = 100


def large_request(size: int = LARGE_BYTES) -> inference_pb2.PredictRequest:
    request = predict_request(0)
    request.request_fields["origin"].string_value = "x" * size
    return request


def ragged_request(elements: int) -> inference_pb2.PredictRequest:
    """A request with a list in place of a number."""
    request = predict_request(elements)
    ragged = ValueList(values=[Value(double_value=1.0)] * elements)
    request.request_fields["miles"].CopyFrom(Value(list_value=ragged))
    return request


class Kind(StrEnum):
    """A kind of hostile call."""

    LARGE = "large fields"
    BATCH = "batches with a bad row"
    SHORT = "deadlines of 6 ms"
    RAGGED = "ragged vectors"


class OtherCaller:
    """Sends one call after the other and counts how they end: hostile ones of some kinds, and valid ones in
    place of the others."""

    def __init__(
        self, channel: grpc.aio.Channel, *, kinds: Collection[Kind] = tuple(Kind), large: int = LARGE_BYTES
    ) -> None:
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._predict = channel.unary_unary(PREDICT)
        """Sends messages that are encoded already."""
        self._kinds = kinds
        # Encoding it for each call would take time of the gateway's cores, which a caller does not have.
        self._large = large_request(large).SerializeToString()
        self._batch = inference_pb2.BatchPredictRequest(
            model=MODEL, requests=[predict_request(number, "") for number in range(BATCH_ROWS)]
        )
        # One row of a hundred lacks its key.
        self._batch.requests[17].entity_keys.clear()
        self.ended: Counter[str] = Counter()
        self._numbers = itertools.count()
        self.seconds = 0.0
        """How long it has sent calls."""

    async def run_for(self, seconds: float) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for count in range(int(seconds * HOSTILE)):
                group.create_task(self._send(next(self._numbers)))
                await asyncio.sleep(max(0.0, began + count / HOSTILE - time.monotonic()))
        self.seconds += seconds

    async def _send(self, number: int) -> None:
        kind: Kind | None = _kind_of(number)
        if kind not in self._kinds:
            kind = None
        request = ragged_request(number % 5) if kind is Kind.RAGGED else predict_request(number)
        try:
            if kind is Kind.LARGE:
                await self._predict(self._large, timeout=5.0)
            elif kind is Kind.BATCH:
                batch = await self._stub.BatchPredict(self._batch, timeout=5.0)
                bad = [place for place, one in enumerate(batch.results) if one.HasField("error")]
                self.ended["batch" if bad == [17] else f"batch {bad}"] += 1
                return
            else:
                await self._stub.Predict(request, timeout=SHORT_SECONDS if kind is Kind.SHORT else 5.0)
            self.ended["OK"] += 1
        except grpc.aio.AioRpcError as error:
            self.ended[error.code().name] += 1


def _kind_of(number: int) -> Kind:
    """The kind of the call with this number: of 200 calls one is large and four are batches."""
    if number % 200 == 0:
        return Kind.LARGE
    if number % 50 == 1:
        return Kind.BATCH
    return Kind.SHORT if number % 2 else Kind.RAGGED


@dataclass
class Compared:
    """All healthy calls, and the phases in which they were alone and beside the other caller."""

    calls: Sequence[Call] = ()
    alone: list[tuple[float, float]] = field(default_factory=list)
    together: list[tuple[float, float]] = field(default_factory=list)

    @property
    def p99s(self) -> tuple[float, float]:
        """Of the healthy calls beside the other caller and alone, in milliseconds: the medians of the p99 of
        each phase, so that one stall of the machine does not decide."""
        return self._median(self.together), self._median(self.alone)

    def _median(self, phases: Sequence[tuple[float, float]]) -> float:
        return median(p99_ms(sent_in(self.calls, [phase])) for phase in phases)


async def compare(address: str, other: OtherCaller, *, rounds: int = 3) -> Compared:
    """Sends healthy calls from a process of its own, and in every second phase those of `other`."""
    found = Compared()
    seconds = rounds * 2 * PHASE_SECONDS + 10.0
    load = asyncio.create_task(separate_load(address, rate=HEALTHY, seconds=seconds, deadline=5.0))
    await asyncio.sleep(3.0)  # its interpreter starts
    for _ in range(rounds):
        began = time.monotonic()
        await asyncio.sleep(PHASE_SECONDS)
        found.alone.append((began, time.monotonic()))
        began = time.monotonic()
        await other.run_for(PHASE_SECONDS)
        found.together.append((began, began + PHASE_SECONDS))
        await asyncio.sleep(0.2)
    found.calls = await load
    return found


def other_channel(address: str) -> grpc.aio.Channel:
    """A channel that shares no connection with the healthy callers, and may send large messages."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(address, options=options)
