"""Ports of a replay: the topics, and a state of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from flywheel_common.kafka.record import Record
from flywheel_common.postgres.transactions import Store
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.report_lookup import ReportRecords
from flywheel_monitor.replay.difference import Difference

Positions = Mapping[tuple[str, int], int]
"""(topic, partition) → offset of the next record."""


class LogRange(Protocol):
    """Records of the topics."""

    @property
    def records(self) -> int:
        """How many offsets it has."""
        ...

    @property
    def complete_from_us(self) -> int | None:
        """Arrival time from which on no record is missing, None if none is: the broker deletes old ones."""
        ...

    def read(self) -> AsyncIterator[Sequence[Record]]:
        """The records, in order within their partition, some of one partition at a time; `event` is None.
        Raises KafkaUnavailable."""
        ...


class EventLog(Protocol):
    """The topics of predictions and outcomes."""

    def range(self, since_us: int, until: Positions) -> AbstractAsyncContextManager[LogRange]:
        """The records that arrived at `since_us` or later, in front of these positions; partitions without a
        position have none. Raises KafkaUnavailable."""
        ...


class Scratch(Protocol):
    """The scratch state of one replay, with a copy of what was stored when it began: positions, panes and
    reports of one moment."""

    @property
    def positions(self) -> Positions: ...

    @property
    def store(self) -> Store[ReportRecords]:
        """What the replay has counted, for the same versions with the same references."""
        ...

    async def take(self, records: Sequence[Record]) -> None:
        """Count records of one partition as ingestion does; poison is left out."""
        ...

    async def pane_differences(self, limit: int) -> tuple[int, list[Difference]]:
        """(number of panes compared, the first differences by version and time)."""
        ...

    def reports(self) -> AsyncIterator[Report]:
        """The copied reports, by version and time."""
        ...


class ScratchStates(Protocol):
    """Makes scratch states."""

    def open(self, model: str, start_us: int, end_us: int) -> AbstractAsyncContextManager[Scratch]:
        """An empty state with a copy of what is stored of the panes and windows of the model inside the
        range. It is deleted at the end. Raises ReplayRunning while another one is open."""
        ...
