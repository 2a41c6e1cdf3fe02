"""Handling of consumed records: decode them, report poison events, count the rest.

A record that cannot be decoded is poison: PoisonError names it, and the consumer loop moves it to the
dead-letter topic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from flywheel_common.errors import InvalidArgument
from flywheel_common.kafka import topics
from flywheel_common.kafka.consumer import PoisonError, Record
from flywheel_common.kafka.envelope import payload_of
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.ingest.batches import OutcomeColumns, PredictionColumns
from flywheel_monitor.ingest.decode import outcome_columns, prediction_columns
from flywheel_monitor.ingest.ports import Ingestion
from flywheel_protos.events.v1 import prediction_pb2

STATEMENT_ROWS = 10_000
"""Most rows of one INSERT, so that none reaches the statement timeout on a busy machine."""


def in_parts(batches: Sequence[PredictionColumns], rows: int) -> Iterator[list[PredictionColumns]]:
    """The batches in order, in groups of at most `rows` rows; a larger batch is a group of its own."""
    part: list[PredictionColumns] = []
    count = 0
    for batch in batches:
        if part and count + len(batch.ids) > rows:
            yield part
            part, count = [], 0
        part.append(batch)
        count += len(batch.ids)
    if part:
        yield part


class EventHandler:
    """The handler of the consumer loop. `on` returns the ingestion port inside the loop's transaction."""

    def __init__(self, on: Callable[[Connection], Ingestion]) -> None:
        self._on = on

    async def handle(self, conn: Connection, records: Sequence[Record]) -> None:
        """Count records of one partition of one topic, in the transaction that moves the position. Raises
        PoisonError with every record that cannot be decoded; the loop parks these and calls again with the
        others."""
        predictions: list[PredictionColumns] = []
        outcomes: list[OutcomeColumns] = []
        poison: list[Record] = []
        why = ""
        for record in records:
            try:
                assert record.event is not None
                if record.topic == topics.PREDICTION_LOGGED:
                    batch = payload_of(record.event, prediction_pb2.PredictionBatch)
                    predictions.append(prediction_columns(batch, record.event.payload))
                else:
                    outcomes.append(outcome_columns(payload_of(record.event, prediction_pb2.OutcomeBatch)))
            except InvalidArgument as error:
                poison.append(record)
                why = why or error.message
        if poison:
            raise PoisonError(why, poison)
        ingestion, partition = self._on(conn), records[0].partition
        for part in in_parts(predictions, STATEMENT_ROWS):
            await ingestion.add_predictions(partition, part)
        if outcomes:
            await ingestion.add_outcomes(partition, outcomes)
