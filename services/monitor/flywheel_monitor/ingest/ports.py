"""Ports of ingestion: counting events, reading the counts, and the consumer lag. Times are event time in
microseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from flywheel_monitor.ingest.batches import IngestCounts, OutcomeColumns, PredictionColumns
from flywheel_monitor.ingest.lag import Lag
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.output import Output
from flywheel_monitor.windows.span import Span


class Ingestion(Protocol):
    """Counts predictions and outcomes, each once, whatever is repeated and in whatever order they arrive.

    One writer at a time works on a partition. A prediction, its repeats, its shadows and its outcomes are in
    the same partition, unless topics got more partitions meanwhile. A served prediction is identified by
    (model, prediction id), a shadow prediction by its variant too: the first one is kept, later ones are
    duplicates. An outcome is identified by (model, outcome id) and belongs to the predictions of its own
    model only.

    A prediction counts in the pane of its event time, in the segment "" and in its own segment. The label of
    a prediction is its outcome named LABEL with the largest (event time, outcome id). It counts in the pane
    of its prediction, for the served prediction and for its shadows. A label that arrives before its served
    prediction is an orphan until then.

    Counts, labels, progress and the archive queue change together, in the transaction. Batches of a version
    whose reference cannot be fetched wait (`WaitingPredictions`) and delay no other version."""

    async def outputs(self, model: str) -> Mapping[str, Output]:
        """Version → output of the model's versions that have made predictions."""
        ...

    def known_output(self, model_version: str) -> Output | None:
        """The output of a version that has made predictions, if no read is needed for it."""
        ...

    async def knows_model(self, model: str) -> bool:
        """Whether the model exists: it has a policy, an experiment, predictions or outcomes here, or the
        registry has it, which is asked once in a few seconds. True while the registry cannot be asked."""
        ...

    async def add_predictions(self, partition: int, batches: Sequence[PredictionColumns]) -> None: ...

    async def add_outcomes(self, partition: int, batches: Sequence[OutcomeColumns]) -> None: ...


class WaitingPredictions(Protocol):
    """Batches that wait until the reference of their version can be fetched. They are not counted, and their
    version is not evaluated, until then."""

    async def waiting_versions(self) -> list[str]: ...

    async def count_waiting(self, model_version: str) -> int:
        """Count some waiting batches of the version as `Ingestion` does, the oldest first; returns how many,
        0 when none is left. Raises a retryable FlywheelError while the reference cannot be fetched."""
        ...


class IngestStatus(Protocol):
    """How much of a project was ingested."""

    async def counts(self, project: str) -> IngestCounts: ...

    async def late_by_model(self, project: str, limit: int) -> list[tuple[str, int]]:
        """(model, `IngestCounts.late`) of the models with late predictions, most first."""
        ...

    async def waiting_rows(self, project: str) -> int:
        """Predictions that wait for the reference of their version."""
        ...

    async def reached(self, project: str) -> int | None:
        """The newest event time that the predictions of a model have reached in a partition (see
        `windows.support`); None before any has."""
        ...


class CountedWindows(Protocol):
    """Windows of counted predictions. Windows are sums over whole panes and exact: the same predictions
    and labels give the same counts, in whatever order and parts they arrived. Panes remain when single
    predictions are deleted."""

    async def window(self, version: WatchedVersion, span: Span, segment: str = "") -> WindowCounts:
        """Counts of the served predictions whose panes begin in the span."""
        ...

    async def event_range(
        self, version: WatchedVersion, span: Span, segment: str
    ) -> tuple[int | None, int | None]:
        """Event time of the first and last served prediction; the start of its pane if it is deleted."""
        ...

    async def segments(self, version: WatchedVersion, limit: int) -> list[str]:
        """Segments with served predictions of the version, by name."""
        ...


class Retention(Protocol):
    """Deletes old predictions."""

    async def prune(self, arrived_before: datetime) -> int:
        """Delete some predictions (and their labels) that arrived before this wall time, whatever their event
        time is; returns how many were deleted, 0 when none is left."""
        ...

    async def compact(self, keep_us: int) -> int:
        """Delete some panes that lie further back than `keep_us` from the time that their model has reached
        (see `windows.support`), where hours and days contain them; returns how many were deleted. Ranges
        that begin or end there are widened to whole hours from then on."""
        ...


class ConsumerLag(Protocol):
    """Counts the records that the consumer group has not processed.

    A partition without a committed position (unclaimed, or claimed without a commit) counts from the first
    record that the broker still holds. Committed records do not count, nor do records that the broker
    dropped unread. A record written during `read` may count as unread but never as read, because windows
    are closed by this number. Concurrent calls are allowed."""

    @property
    def last(self) -> Lag:
        """The result of the last successful `read`; an empty one before it."""
        ...

    async def read(self) -> Lag:
        """Read the lag now. Raises KafkaUnavailable while the broker does not respond (before
        the deadline of the running call, if any) or does not list a claimed partition, and
        PostgresUnavailable while the positions cannot be read; `last` then keeps its value."""
        ...
