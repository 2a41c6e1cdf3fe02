"""Handling of consumed records: decode them, report poison events, count the rest.

A record that cannot be decoded is poison: PoisonError names it, and the consumer loop moves it to the
dead-letter topic. Of a record with single rows that cannot be stored, only these rows are poison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from google.protobuf.message import Message
from prometheus_client import Counter

from flywheel_common.arrays import Ints, Mask
from flywheel_common.errors import InvalidArgument
from flywheel_common.event_time import EventTimeBound
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import payload_of
from flywheel_common.kafka.poison import PoisonError
from flywheel_common.kafka.record import Record
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.ingest.batches import LABEL, OutcomeColumns, PredictionColumns
from flywheel_monitor.ingest.decode import outcome_columns, prediction_columns
from flywheel_monitor.ingest.errors import MalformedBatch
from flywheel_monitor.ingest.labels import unfit
from flywheel_monitor.ingest.ports import Ingestion
from flywheel_monitor.ingest.row_split import take_outcomes, take_predictions, with_nul
from flywheel_monitor.windows.output import Output
from flywheel_protos.events.v1 import prediction_pb2
from flywheel_protos.events.v1.event_pb2 import Event

_WRONG_TIMES = Counter(
    "flywheel_monitor_events_out_of_time",
    "Predictions and outcomes that were not counted because their time was unset or after now + "
    "max_clock_skew",
)
_WRONG_LABELS = Counter(
    "flywheel_monitor_labels_unfit",
    "Labels that were not counted because they do not fit the output of their model",
)
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


def _with_payload(record: Record, payload: Message) -> Record:
    """The record with another payload in its event."""
    event = Event()
    if record.event is not None:
        event.CopyFrom(record.event)
    event.payload = payload.SerializeToString()
    return replace(record, value=event.SerializeToString(), event=event)


class EventHandler:
    """The handler of the consumer loop. `on` returns the ingestion port inside the loop's transaction.

    Rows with an unset event time, or one after `event_times`, are poison: no watermark may follow them. So
    are labels that fit no version of their model, and batches whose output differs from that of their
    version.
    """

    def __init__(self, on: Callable[[Connection], Ingestion], event_times: EventTimeBound) -> None:
        self._on = on
        self._event_times = event_times

    async def handle(self, conn: Connection, records: Sequence[Record]) -> None:
        """Count records of one partition of one topic, in the transaction that moves the position. Raises
        PoisonError with every record that cannot be decoded; the loop parks these and calls again with the
        others."""
        predictions: list[PredictionColumns] = []
        outcomes: list[OutcomeColumns] = []
        poison: list[Record] = []
        remaining: list[Record] = []
        why = ""
        split: tuple[Message, Message]
        ingestion, partition = self._on(conn), records[0].partition
        outputs = _Outputs(ingestion)
        for record in records:
            try:
                assert record.event is not None
                if record.topic == topics.PREDICTION_LOGGED:
                    batch = payload_of(record.event, prediction_pb2.PredictionBatch)
                    columns = prediction_columns(batch, record.event.payload)
                    await outputs.check(columns)
                    bad, cause = self._bad_rows(
                        columns.event_times, columns.ids, columns.segments, columns.subjects
                    )
                    if bad is None:
                        predictions.append(columns)
                        continue
                    split = take_predictions(batch, bad), take_predictions(batch, ~bad)
                else:
                    outcome = payload_of(record.event, prediction_pb2.OutcomeBatch)
                    labels = outcome_columns(outcome)
                    bad, cause = self._bad_rows(
                        labels.event_times, labels.prediction_ids, labels.outcome_ids, labels.class_names
                    )
                    if labels.name == LABEL:
                        known = await outputs.of_model(labels.model)
                        bad, cause = _with_bad_labels(unfit(labels, known.values()), bad, cause)
                    if bad is None:
                        outcomes.append(labels)
                        continue
                    split = take_outcomes(outcome, bad), take_outcomes(outcome, ~bad)
            except InvalidArgument as error:
                poison.append(record)
                why = why or error.message
            else:
                poison.append(_with_payload(record, split[0]))
                if not bad.all():
                    remaining.append(_with_payload(record, split[1]))
                why = why or cause
        if poison:
            raise PoisonError(why, poison, remaining)
        for part in in_parts(predictions, STATEMENT_ROWS):
            await ingestion.add_predictions(partition, part)
        if outcomes:
            await ingestion.add_outcomes(partition, outcomes)

    def _bad_rows(self, event_times: Ints, *texts: Sequence[str]) -> tuple[Mask | None, str]:
        """The mask of rows that cannot be counted, None without any, and what is wrong with them."""
        nul = with_nul(*texts)
        wrong = self._event_times.out_of_range(event_times)
        if not wrong.any():
            return nul, "an id or a segment contains a NUL character"
        _WRONG_TIMES.inc(int(wrong.sum()))
        return wrong if nul is None else wrong | nul, ("an event time is unset or after now + max_clock_skew")


class _Outputs:
    """The outputs of the versions of models, with those of the batches that were checked."""

    def __init__(self, ingestion: Ingestion) -> None:
        self._ingestion = ingestion
        self._known: dict[str, dict[str, Output]] = {}

    async def of_model(self, model: str) -> dict[str, Output]:
        """version → output."""
        if model not in self._known:
            self._known[model] = dict(await self._ingestion.outputs(model))
        return self._known[model]

    async def check(self, batch: PredictionColumns) -> None:
        """Raises MalformedBatch if the output differs from that of the version's first batch."""
        known = (await self.of_model(batch.key.model)).setdefault(batch.key.model_version, batch.output)
        if not known.same(batch.output):
            raise MalformedBatch(
                f"The batch is malformed: its scores are {batch.output.describe()}, those of "
                f"{batch.key.model_version} are {known.describe()}."
            )


def _with_bad_labels(wrong: Mask, bad: Mask | None, cause: str) -> tuple[Mask | None, str]:
    """`_bad_rows` with the labels that do not fit."""
    if not wrong.any():
        return bad, cause
    _WRONG_LABELS.inc(int(wrong.sum()))
    return wrong if bad is None else wrong | bad, "a label does not fit the output of its model"
