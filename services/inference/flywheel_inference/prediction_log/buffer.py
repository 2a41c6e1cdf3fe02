"""The buffer of the prediction log: logs every answer without delaying one.

Rows wait in memory for `flush_seconds`, or until `flush_rows` are there. They leave in steps of about
`flush_rows` rows, so that the encoding after an outage never blocks the event loop for long: one record per
release, role and partition, or several when one would be too large. At most `max_rows` and `max_bytes` are
held, including those being sent; rows beyond that are dropped and counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice

from flywheel_common.telemetry.logs import get_logger
from flywheel_inference.prediction_log.ports import Costs, LogSink
from flywheel_inference.prediction_log.rows import Group, LogRecord, LogRows

log = get_logger(__name__)


class PredictionLog:
    """Takes rows from the Predict path (`offer`) and stores them in a background task (`run`). During an
    outage of the sink it holds up to `max_rows` and `max_bytes` and retries."""

    def __init__(
        self,
        sink: LogSink,
        *,
        flush_seconds: float = 0.02,
        flush_rows: int = 500,
        max_rows: int = 50_000,
        max_bytes: int = 256 * 1024 * 1024,
        retry_seconds: float = 0.5,
        costs: Costs | None = None,
    ) -> None:
        """`costs` counts the costs of all rows, also of those that are dropped."""
        self._sink = sink
        self._costs = costs
        self._flush_seconds = flush_seconds
        self._flush_rows = flush_rows
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._retry_seconds = retry_seconds
        self._buffer: deque[tuple[LogRows, int]] = deque()
        self._buffered = 0
        self._records: deque[LogRecord] = deque()
        self._in_flight: tuple[list[LogRecord], asyncio.Future[int]] | None = None
        self._recorded = 0
        self._bytes = 0
        self._filled = asyncio.Event()
        self._full = asyncio.Event()
        self._lock = asyncio.Lock()
        self.logged_count = 0
        self.dropped_count = 0

    @property
    def held(self) -> int:
        """Number of rows in memory that are not stored yet."""
        return self._buffered + self._recorded

    def offer(self, rows: LogRows) -> None:
        """Adds rows without waiting. Drops and counts them when the buffer is full."""
        count = len(rows.requests)
        size = rows.size_bytes
        if self._costs is not None and rows.costs is not None:
            self._costs.add(rows.spec.model, float(rows.costs.sum()), count)
        if self.held + count > self._max_rows or self._bytes + size > self._max_bytes:
            self.dropped_count += count
            return
        self._buffer.append((rows, size))
        self._buffered += count
        self._bytes += size
        self._filled.set()
        if self._buffered >= self._flush_rows:
            self._full.set()

    async def run(self) -> None:
        """Stores rows until cancelled. Can be called again after an exception."""
        if self.held:
            self._filled.set()
        while True:
            await self._filled.wait()
            try:
                async with asyncio.timeout(self._flush_seconds):
                    await self._full.wait()
            except TimeoutError:
                pass
            while not await self.flush():
                await asyncio.sleep(self._retry_seconds)

    async def flush(self) -> bool:
        """Stores all rows held now; False when the sink did not take all of them.

        Rows that come meanwhile wait for the next flush: each flush costs records and a request for few rows.
        """
        async with self._lock:
            left = self._buffered
            while self._records or left > 0:
                if not self._records:
                    left -= self._encode()
                    continue
                sending, stored = await self._publish()
                for record in sending[:stored]:
                    self._records.popleft()
                    self._recorded -= record.rows
                    self._bytes -= len(record.value)
                    self.logged_count += record.rows
                if stored < len(sending):
                    self._filled.set()
                    log.warning(
                        "prediction log unavailable: rows wait", rows=self.held, dropped=self.dropped_count
                    )
                    return False
            return True

    async def _publish(self) -> tuple[list[LogRecord], int]:
        """Sends the next records; returns them, and how many of the first ones are stored.

        A cancelled flush leaves its records in flight: the next one waits for their result and sends none
        twice.
        """
        if self._in_flight is None:
            sending = list(islice(self._records, 64))
            self._in_flight = sending, asyncio.ensure_future(self._sink.publish(sending))
        sending, publishing = self._in_flight
        try:
            return sending, await asyncio.shield(publishing)
        finally:
            if publishing.done():
                self._in_flight = None

    async def drain(self, timeout: float) -> None:
        """Stores the rows left at shutdown, within `timeout` seconds; counts the rest as dropped."""
        try:
            async with asyncio.timeout(timeout):
                while self.held:
                    if not await self.flush():
                        await asyncio.sleep(0.1)
        except TimeoutError:
            self.dropped_count += self.held

    def _encode(self) -> int:
        """Encodes about `flush_rows` rows of the buffer; returns how many."""
        groups: dict[Group, list[LogRows]] = {}
        taken = 0
        while self._buffer and taken < self._flush_rows:
            part, size = self._buffer.popleft()
            groups.setdefault(part.group, []).append(part)
            taken += len(part.requests)
            self._bytes -= size
        self._buffered -= taken
        if not self._buffer:
            self._filled.clear()
        if self._buffered < self._flush_rows:
            self._full.clear()
        for group in groups.values():
            count = sum(len(part.requests) for part in group)
            try:
                records = self._sink.encode(group)
            except Exception as error:
                log.error("prediction log rows not encoded: dropped", rows=count, exc_info=error)
                self.dropped_count += count
                continue
            self._records.extend(records)
            recorded = sum(record.rows for record in records)
            self._recorded += recorded
            self._bytes += sum(len(record.value) for record in records)
            self.dropped_count += count - recorded
        return taken
