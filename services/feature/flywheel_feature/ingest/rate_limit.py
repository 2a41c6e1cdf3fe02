"""A limit on rows per second for jobs that write to the online store."""

from __future__ import annotations

from flywheel_common.clock import Clock

CHUNK_ROWS = 2_000


class RateLimit:
    """At most `rows_per_second` rows on average since the start; 0: no limit."""

    def __init__(self, rows_per_second: int, clock: Clock) -> None:
        self._limit = rows_per_second
        self._clock = clock
        self._began = clock.monotonic()
        self.rows = 0
        self.chunk = min(CHUNK_ROWS, max(1, rows_per_second // 4)) if rows_per_second else CHUNK_ROWS
        """Rows to write at once."""

    async def wrote(self, rows: int) -> None:
        """Count written rows and wait while they exceed the limit."""
        self.rows += rows
        if self._limit:
            early = self.rows / self._limit - (self._clock.monotonic() - self._began)
            if early > 0:
                await self._clock.sleep(early)

    def time_left(self, rows: int) -> str:
        """`, 5,000 rows/s, 12 s left` for `rows` more rows; empty in the first half second."""
        took = self._clock.monotonic() - self._began
        if took < 0.5 or not self.rows:
            return ""
        return f", {self.rows / took:,.0f} rows/s, {max(rows, 0) * took / self.rows:.0f} s left"
