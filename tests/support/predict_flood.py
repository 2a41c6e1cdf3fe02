"""Predict calls from a process of its own: a closed loop, or a constant rate whatever the answers.

`python -m tests.support.predict_flood ADDRESS (closed|open) NUMBER SECONDS DEADLINE FILE` writes one row per
call: when it was due (seconds on time.monotonic), how long it took from then to its answer, and its status
code. NUMBER is the number of calls in flight (closed) or the rate per second (open). A call of an open loop
counts from the time at which it is due, so that a late sender hides nothing.

grpcio needs 0.1 ms of CPU for a call, too much to overload a gateway from the other core. This client writes
HTTP/2 frames itself: the headers of all calls are the same bytes, and of an answer it reads the message and
the status only.
"""

from __future__ import annotations

import asyncio
import re
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import uvloop

from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.inference.v1 import inference_pb2
from tests.support.prediction_load import predict_request

METHOD = "/flywheel.inference.v1.InferenceService/Predict"
CONNECTIONS = 8
LOST, DEGRADED = 98.0, 99.0
"""In place of a status: the stream was reset without one; the answer is not the model's."""

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_TABLE_SIZE, _MAX_STREAMS, _INITIAL_WINDOW = 1, 3, 4
_STATUS = re.compile(rb"grpc-status.([0-9]+)", re.DOTALL)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _header_block(address: str, deadline: float) -> bytes:
    """Header fields as literals that are not indexed (RFC 7541, 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": METHOD,
        ":authority": address,
        "content-type": "application/grpc",
        "te": "trailers",
        "grpc-timeout": f"{round(deadline * 1e3)}m",
    }
    texts = [text.encode() for field in fields.items() for text in field]
    return b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in zip(texts[::2], texts[1::2], strict=True)
    )


class _Open:
    """A call that waits for its answer."""

    __slots__ = ("due", "ended", "message", "status")

    def __init__(self, due: float, ended: Callable[[_Open], None]) -> None:
        self.due = due
        self.ended = ended
        self.message = b""
        self.status = LOST


class Connection(asyncio.Protocol):
    """One HTTP/2 connection. `call` starts a call; its `ended` is called once."""

    def __init__(self, header_block: bytes, message: bytes) -> None:
        body = b"\0" + struct.pack(">I", len(message)) + message
        self._header_block = header_block
        self._body = body
        self._next = 1
        self._open: dict[int, _Open] = {}
        self._waiting: deque[_Open] = deque()
        self._max_streams = 100
        self._window = 65_535
        self._buffer = b""
        self.settled = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        # Without a dynamic table the headers of an answer are literals.
        settings = struct.pack(">HIHI", _TABLE_SIZE, 0, _INITIAL_WINDOW, 2**31 - 1)
        transport.write(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1 - 65_535))
        )

    def call(self, due: float, ended: Callable[[_Open], None]) -> None:
        self._waiting.append(_Open(due, ended))
        self._send()

    def _send(self) -> None:
        while self._waiting and len(self._open) < self._max_streams and self._window >= len(self._body):
            self._open[self._next] = self._waiting.popleft()
            self._window -= len(self._body)
            self._transport.write(
                _frame(_HEADERS, _END_HEADERS, self._next, self._header_block)
                + _frame(_DATA, _END_STREAM, self._next, self._body)
            )
            self._next += 2

    def data_received(self, data: bytes) -> None:
        buffer, place = self._buffer + data, 0
        while len(buffer) - place >= 9:
            size = int.from_bytes(buffer[place : place + 3])
            if len(buffer) - place - 9 < size:
                break
            kind, flags, stream = struct.unpack_from(">BBI", buffer, place + 3)
            self._received(kind, flags, stream, buffer[place + 9 : place + 9 + size])
            place += 9 + size
        self._buffer = buffer[place:]
        self._send()

    def _received(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for number, value in struct.iter_unpack(">HI", payload):
                if number == _MAX_STREAMS:
                    self._max_streams = value
            self._transport.write(_frame(_SETTINGS, _ACK, 0, b""))
            self.settled.set()
        elif kind == _PING and not flags & _ACK:
            self._transport.write(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload)
        elif kind == _GO_AWAY:
            raise ConnectionError(payload)
        elif (one := self._open.get(stream)) is not None:
            if kind == _DATA:
                one.message += payload
            elif kind == _HEADERS and (found := _STATUS.search(payload)):
                one.status = float(found[1])
            if kind == _RESET or (flags & _END_STREAM and kind in (_DATA, _HEADERS)):
                del self._open[stream]
                one.ended(one)

    def connection_lost(self, error: Exception | None) -> None:
        for one in [*self._open.values(), *self._waiting]:
            one.ended(one)


class Flood:
    """The calls of this process; `calls` are added as they end."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections
        self._ended: list[tuple[float, float, float, bytes]] = []
        self._started = 0

    @property
    def calls(self) -> np.ndarray:
        """A row per call: due, seconds, status."""
        rows = [
            (due, seconds, status if status or _of_model(message) else DEGRADED)
            for due, seconds, status, message in self._ended
        ]
        return np.array(rows, np.float64).reshape(-1, 3)

    def _call(self, due: float, then: Callable[[], None] = lambda: None) -> None:
        def ended(one: _Open) -> None:
            self._ended.append((one.due, time.monotonic() - one.due, one.status, one.message))
            then()

        connection = self._connections[self._started % len(self._connections)]
        self._started += 1
        connection.call(due, ended)

    async def closed(self, in_flight: int, seconds: float) -> None:
        until = time.monotonic() + seconds

        def another() -> None:
            if (now := time.monotonic()) < until:
                self._call(now, another)

        for _ in range(in_flight):
            another()
        await self._all_ended()

    async def open(self, rate: float, seconds: float) -> None:
        began, count = time.monotonic(), int(rate * seconds)
        for number in range(count):
            due = began + number / rate
            while (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(min(wait, 0.001))
            self._call(due)
            if number % 32 == 0:
                await asyncio.sleep(0)
        await self._all_ended()

    async def _all_ended(self) -> None:
        async with asyncio.timeout(30):
            while len(self._ended) < self._started:
                await asyncio.sleep(0.01)


def _of_model(message: bytes) -> bool:
    answer = inference_pb2.PredictResponse.FromString(message[5:])
    return answer.source == prediction_pb2.PREDICTION_SOURCE_MODEL


async def main(address: str, kind: str, number: float, seconds: float, deadline: float, file: Path) -> None:
    host, _, port = address.rpartition(":")
    block, message = _header_block(address, deadline), predict_request(1).SerializeToString()
    loop, connections = asyncio.get_running_loop(), []
    for _ in range(CONNECTIONS):
        _, connection = await loop.create_connection(lambda: Connection(block, message), host, int(port))
        await connection.settled.wait()
        connections.append(connection)
    flood = Flood(connections)
    if kind == "closed":
        await flood.closed(int(number), seconds)
    else:
        await flood.open(number, seconds)
    np.save(file, flood.calls)


if __name__ == "__main__":
    address, kind, *numbers, file = sys.argv[1:]
    count, seconds, deadline = map(float, numbers)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(address, kind, count, seconds, deadline, Path(file)))
