"""The port of the archive queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flywheel_common.storage.objects import ObjectStore
from flywheel_monitor.archive.queue import Segment, Waiting


class ArchiveObjects(ObjectStore, Protocol):
    """The bucket of the archive."""

    async def ensure_bucket(self) -> None:
        """Create the bucket if it does not exist."""
        ...


class ArchiveQueue(Protocol):
    """Prediction batches that wait for the archive, queued by the transaction that counted them, each with
    a bitmap of the rows that were new (`pack_kept`). A batch without new rows is not queued. A segment is
    cut before its objects are written and completed afterwards; the work in between may be repeated and
    finds the same batches. One replica at a time works here."""

    async def waiting(self) -> list[Waiting]:
        """Batches without a segment, per model."""
        ...

    async def cut_segment(self, model: str, at_least: int) -> None:
        """Put the oldest waiting batches into a new segment until it has `at_least` rows or no batch is
        left."""
        ...

    async def pending_segments(self) -> list[Segment]:
        """Segments that are not completed, oldest first."""
        ...

    async def segment_batches(self, segment: int) -> list[tuple[bytes, bytes]]:
        """(payload, bitmap) of its batches in the order in which they were queued."""
        ...

    async def complete_segment(
        self, segment: int, objects: Sequence[str], rows: int, last_event_us: int
    ) -> None:
        """Record that the segment is archived under these keys, and delete its batches from the queue."""
        ...

    async def archived(self, model: str) -> tuple[int, int | None]:
        """(rows in completed segments, newest event time among them)."""
        ...
