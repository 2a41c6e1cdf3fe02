"""Handling of consumed records: decode them, report poison events, count the rest.

A record that cannot be decoded is poison: PoisonError names it, and the consumer loop moves it to the
dead-letter topic. Of a record with single rows that cannot be stored, only these rows are poison.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from google.protobuf.message import Message
from prometheus_client import Counter

from flywheel_common.arrays import Ints, Mask
from flywheel_common.errors import InvalidArgument
from flywheel_common.event_time import EventTimeBound
from flywheel_common.kafka import topics
from flywheel_common.kafka.envelope import parse_event, payload_of
from flywheel_common.kafka.poison import PoisonError
from flywheel_common.kafka.record import Record
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.ingest.batches import LABEL, OutcomeColumns, PredictionColumns
from flywheel_monitor.ingest.decode import outcome_columns, prediction_columns
from flywheel_monitor.ingest.errors import MalformedBatch
from flywheel_monitor.ingest.labels import unfit
from flywheel_monitor.ingest.ports import Ingestion
from flywheel_monitor.ingest.row_split import take_outcomes, take_predictions, with_nul
from flywheel_monitor.ingest.similar_records import Similar, SimilarRecords
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
PART_BYTES = 8 * 1024 * 1024
"""Records that are decoded and counted at once, which bounds memory and the rows of one statement; a larger
record is alone."""


def in_parts(records: Sequence[Record], size: int) -> Iterator[list[Record]]:
    """The records in order, in groups of at most `size` bytes; a larger record is a group of its own."""
    part: list[Record] = []
    total = 0
    for record in records:
        if part and total + len(record.value) > size:
            yield part
            part, total = [], 0
        part.append(record)
        total += len(record.value)
    if part:
        yield part


class _Poison:
    """Records, or the rows of them, that cannot be counted, what remains of them, and the first cause."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._remaining: list[Record] = []
        self._why = ""

    def whole(self, record: Record, why: str) -> None:
        self._records.append(record)
        self._why = self._why or why

    def rows(self, record: Record, event: Event, bad: Message, rest: Message | None, why: str) -> None:
        """Some rows; `rest` is a batch of the others."""
        self.whole(_with_payload(record, event, bad), why)
        if rest is not None:
            self._remaining.append(_with_payload(record, event, rest))

    def check(self) -> None:
        """Raises PoisonError if there is any."""
        if self._records:
            raise PoisonError(self._why, self._records, self._remaining)


def _with_payload(record: Record, envelope: Event, payload: Message) -> Record:
    """The record with another payload in its event."""
    event = Event()
    event.CopyFrom(envelope)
    event.payload = payload.SerializeToString()
    return replace(record, value=event.SerializeToString(), event=event)


class EventHandler:
    """The handler of the consumer loop. `on` returns the ingestion port inside the loop's transaction.

    Rows with an unset event time, or one after `event_times`, are poison: no watermark may follow them. So
    are labels that fit no version of their model, outcomes of models that do not exist, and batches whose
    output differs from that of their version.
    """

    def __init__(self, on: Callable[[Connection], Ingestion], event_times: EventTimeBound) -> None:
        self._on = on
        self._event_times = event_times
        self._similar = SimilarRecords()

    async def handle(self, conn: Connection, records: Sequence[Record]) -> None:
        """Count records of one partition of one topic, in the transaction that moves the position. Raises
        PoisonError with records that cannot be decoded; the loop parks these and calls again with the
        others."""
        ingestion = self._on(conn)
        outputs = _Outputs(ingestion)
        for part in in_parts(records, PART_BYTES):
            if part[0].topic == topics.PREDICTION_LOGGED:
                predictions = await self._predictions(part, outputs)
                await ingestion.add_predictions(part[0].partition, predictions)
            else:
                await ingestion.add_outcomes(part[0].partition, await self._outcomes(part, outputs))

    async def _predictions(self, records: Sequence[Record], outputs: _Outputs) -> list[PredictionColumns]:
        """The batches of the records, in order of their first records. Raises PoisonError."""
        found: list[PredictionColumns] = []
        poison = _Poison()
        groups, singles = self._similar.join([record.value for record in records])
        waiting: list[tuple[int, Similar | None]] = [(i, None) for i in singles]
        waiting += [(group.indices[0], group) for group in groups]
        # The order decides which batch is the first of its version.
        heapq.heapify(waiting)
        while waiting:
            i, group = heapq.heappop(waiting)
            if group is None:
                columns = await self._single(i, records[i], outputs, poison)
            elif (columns := await self._joint(group, outputs)) is None:
                for i in group.indices:
                    heapq.heappush(waiting, (i, None))
            if columns is not None:
                found.append(columns)
        poison.check()
        return found

    async def _joint(self, group: Similar, outputs: _Outputs) -> PredictionColumns | None:
        """The rows of similar records; None if a single record has to be found that is wrong."""
        try:
            columns = prediction_columns(group.batch, group.batch.SerializeToString(), group.arrivals)
            await outputs.check(columns)
        except InvalidArgument:
            return None
        texts = columns.ids, columns.segments, columns.subjects
        wrong = with_nul(*texts) is not None or self._event_times.out_of_range(columns.event_times).any()
        return None if wrong else columns

    async def _single(
        self, i: int, record: Record, outputs: _Outputs, poison: _Poison
    ) -> PredictionColumns | None:
        try:
            event = record.event or parse_event(record.value)
            batch = payload_of(event, prediction_pb2.PredictionBatch)
            columns = prediction_columns(batch, event.payload, i)
            await outputs.check(columns)
        except InvalidArgument as error:
            poison.whole(record, error.message)
            return None
        bad, cause = self._bad_rows(columns.event_times, columns.ids, columns.segments, columns.subjects)
        if bad is None:
            return columns
        rest = None if bad.all() else take_predictions(batch, ~bad)
        poison.rows(record, event, take_predictions(batch, bad), rest, cause)
        return None

    async def _outcomes(self, records: Sequence[Record], outputs: _Outputs) -> list[OutcomeColumns]:
        """The batches of the records, in order. Raises PoisonError."""
        found: list[OutcomeColumns] = []
        poison = _Poison()
        for record in records:
            try:
                event = record.event or parse_event(record.value)
                outcome = payload_of(event, prediction_pb2.OutcomeBatch)
                labels = outcome_columns(outcome)
                await outputs.check_model(labels.model)
                bad, cause = self._bad_rows(
                    labels.event_times, labels.prediction_ids, labels.outcome_ids, labels.class_names
                )
                if labels.name == LABEL:
                    known = await outputs.of_model(labels.model)
                    bad, cause = _with_bad_labels(unfit(labels, known.values()), bad, cause)
            except InvalidArgument as error:
                poison.whole(record, error.message)
                continue
            if bad is None:
                found.append(labels)
                continue
            rest = None if bad.all() else take_outcomes(outcome, ~bad)
            poison.rows(record, event, take_outcomes(outcome, bad), rest, cause)
        poison.check()
        return found

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
        self._models: set[str] = set()
        """Models that exist."""

    async def of_model(self, model: str) -> dict[str, Output]:
        """version → output."""
        if model not in self._known:
            self._known[model] = dict(await self._ingestion.outputs(model))
        return self._known[model]

    async def check_model(self, model: str) -> None:
        """Raises MalformedBatch for outcomes of a model that does not exist."""
        if model not in self._models and not await self._ingestion.knows_model(model):
            raise MalformedBatch(f"The batch is malformed: there is no model {model}.")
        self._models.add(model)

    async def check(self, batch: PredictionColumns) -> None:
        """Raises MalformedBatch if the output differs from that of the version's first batch."""
        name = batch.key.model_version
        known = self._ingestion.known_output(name)
        if known is None:
            known = (await self.of_model(batch.key.model)).setdefault(name, batch.output)
        if not known.same(batch.output):
            raise MalformedBatch(
                f"The batch is malformed: its scores are {batch.output.describe()}, those of "
                f"{name} are {known.describe()}."
            )


def _with_bad_labels(wrong: Mask, bad: Mask | None, cause: str) -> tuple[Mask | None, str]:
    """`_bad_rows` with the labels that do not fit."""
    if not wrong.any():
        return bad, cause
    _WRONG_LABELS.inc(int(wrong.sum()))
    return wrong if bad is None else wrong | bad, "a label does not fit the output of its model"
