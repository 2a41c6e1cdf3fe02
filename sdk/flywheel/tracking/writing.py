"""Writes the points of a run from memory to its spool."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from flywheel.tracking.errors import SpoolFull
from flywheel.tracking.spool import Kind, Spool
from flywheel_common.system_metrics import SystemMetrics
from flywheel_protos.trainer.v1 import trainer_pb2

log = logging.getLogger("flywheel.tracking")

FLUSH_SECONDS = 0.2
BATCH_POINTS = 20_000
MAX_BUFFERED_POINTS = 400_000
"""Points in memory; `log` waits while there are more, which only a slow disk can cause."""
SYSTEM_SECONDS = 10.0
Point = tuple[str, int, float, int]


class PointWriter:
    """Points in memory, which a thread moves to the spool in batches; `wake` is set after each batch."""

    def __init__(self, run: str, spool: Spool, wake: threading.Event, *, system_metrics: bool) -> None:
        self.points: deque[Point] = deque()
        """Metric, step, value and time in microseconds. Any thread may extend it."""
        self.dropped = 0
        """Points that were dropped because the spool, or the disk, was full."""
        self.failure: OSError | None = None
        """Why the spool could not be written at the last try."""
        self._run, self._spool, self._wake = run, spool, wake
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._system = SystemMetrics() if system_metrics else None
        self._thread = threading.Thread(target=self._write_until_stopped, name="flywheel-spool", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; `write` moves what it left."""
        self._stop.set()
        self._thread.join()

    def wait(self) -> None:
        """Wait while memory has too many points."""
        while len(self.points) > MAX_BUFFERED_POINTS and not self._stop.is_set():
            time.sleep(0.01)

    def write(self) -> None:
        """Move the points in memory to the spool. Raises OSError."""
        with self._lock:
            while self.points:
                points = [self.points.popleft() for _ in range(min(len(self.points), BATCH_POINTS))]
                keys, steps, values, times = zip(*points, strict=True)
                request = trainer_pb2.LogMetricsRequest(
                    run=self._run, keys=keys, steps=steps, values=values, times=times
                )
                try:
                    self._spool.append(Kind.METRICS, request.SerializeToString())
                except SpoolFull as error:
                    if not self.dropped:
                        log.error("%s Points are dropped until it is sent.", error)
                    self.dropped += len(points)
                except OSError:
                    self.points.extendleft(reversed(points))
                    raise
                self._wake.set()
            self.failure = None

    def _write_until_stopped(self) -> None:
        next_system = time.monotonic()
        while not self._stop.wait(FLUSH_SECONDS):
            try:
                if self._system is not None and time.monotonic() >= next_system:
                    next_system = time.monotonic() + SYSTEM_SECONDS
                    now = time.time_ns() // 1000
                    self.points.extend((k, now // 1_000_000, v, now) for k, v in self._system.read().items())
                self.write()
            except OSError as error:
                # The disk is full, or gone: the points wait in memory up to its bound.
                if self.failure is None:
                    log.error("the spool %s cannot be written: %s", self._spool.folder, error)
                self.failure = error
                while len(self.points) > MAX_BUFFERED_POINTS // 2:
                    self.points.popleft()
                    self.dropped += 1
