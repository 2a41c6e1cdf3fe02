"""Records of the two topics → columns → what counts them. What cannot be decoded is poison and goes to the dead-letter topic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from flywheel_common.errors import InvalidArgument
from flywheel_common.kafka import topics
from flywheel_common.kafka.consumer import PoisonError, Record
from flywheel_common.kafka.envelope import payload_of
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.batches import OutcomeColumns, PredictionColumns
from flywheel_monitor.convert import outcome_columns, prediction_columns
from flywheel_monitor.ports import Ingestion
from flywheel_protos.events.v1 import prediction_pb2

STATEMENT_ROWS = 10_000
"""Rows after which another statement begins, so that none outlives the statement timeout on a busy machine."""


def in_parts(batches: Sequence[PredictionColumns], rows: int) -> Iterator[list[PredictionColumns]]:
    """The batches in order, in groups of at most `rows` rows (or of one larger batch)."""
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


class Intake:
    """The handler of the consumer loop. `on` gives what counts inside the loop's transaction."""

    def __init__(self, on: Callable[[Connection], Ingestion]) -> None:
        self._on = on

    async def handle(self, conn: Connection, records: Sequence[Record]) -> None:
        """Records of one partition of one topic, in the transaction that moves the position. Raises PoisonError naming
        every record that cannot be decoded: the loop parks them and comes again with the rest."""
        answers: list[PredictionColumns] = []
        outcomes: list[OutcomeColumns] = []
        poison: list[Record] = []
        why = ""
        for record in records:
            try:
                assert record.event is not None
                if record.topic == topics.PREDICTION_LOGGED:
                    batch = payload_of(record.event, prediction_pb2.PredictionBatch)
                    answers.append(prediction_columns(batch, record.event.payload))
                else:
                    outcomes.append(outcome_columns(payload_of(record.event, prediction_pb2.OutcomeBatch)))
            except InvalidArgument as error:
                poison.append(record)
                why = why or error.message
        if poison:
            raise PoisonError(why, poison)
        ingestion, partition = self._on(conn), records[0].partition
        for part in in_parts(answers, STATEMENT_ROWS):
            await ingestion.add_predictions(partition, part)
        if outcomes:
            await ingestion.add_outcomes(partition, outcomes)
