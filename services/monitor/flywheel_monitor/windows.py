"""Tumbling windows of event time, and when a stream has passed them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Span:
    """[start, end), microseconds of event time."""

    start_us: int
    end_us: int


def window_of(event_time_us: int, window_us: int) -> Span:
    """The window that holds an event; windows are aligned to 1970-01-01T00:00:00Z."""
    start = event_time_us // window_us * window_us
    return Span(start, start + window_us)


@dataclass(frozen=True)
class PartitionProgress:
    """Newest event time seen in a partition, and whether everything that the broker holds for it was read."""

    newest_us: int
    caught_up: bool


def watermark(partitions: Iterable[PartitionProgress]) -> int | None:
    """Event time up to which all partitions are read: the slowest one's newest event, where one that has caught up holds
    nobody back. None without any partition."""
    known = list(partitions)
    if not known:
        return None
    behind = [p.newest_us for p in known if not p.caught_up]
    return min(behind) if behind else max(p.newest_us for p in known)


@dataclass(frozen=True)
class Behind:
    """Partitions of each topic that hold records not yet read."""

    answers: frozenset[int] = frozenset()
    outcomes: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Marks:
    """Event time up to which a model's answers, and its answers and labels, are read; labels None: not known yet."""

    answers: int
    labels: int | None


def progress(newest: Mapping[int, int], behind: frozenset[int]) -> list[PartitionProgress]:
    """What is known of a model's partitions (number → newest event time). Nothing, while a partition that is behind has
    shown nothing of the model: what waits in there may be older than all that was read."""
    if not behind <= newest.keys():
        return []
    return [PartitionProgress(time, partition not in behind) for partition, time in newest.items()]


@dataclass(frozen=True)
class Newest:
    """How far a store has read. model id → partition → newest event time of an answer (`answers`) and newest time at which an
    outcome became known (`labels`)."""

    answers: Mapping[int, Mapping[int, int]]
    labels: Mapping[int, Mapping[int, int]]


def marks(newest: Newest, behind: Behind) -> dict[int, Marks]:
    """model id → how far its stream is read, for the models of which that is known."""
    found: dict[int, Marks] = {}
    for model_id, answers in newest.answers.items():
        mark = watermark(progress(answers, behind.answers))
        if mark is None:
            continue
        labels = newest.labels.get(model_id, {})
        label_mark = watermark(progress(labels, behind.outcomes)) if behind.outcomes else mark
        found[model_id] = Marks(mark, None if label_mark is None else min(mark, label_mark))
    return found


@dataclass(frozen=True)
class Frontier:
    """How far the windows of a version were evaluated, microseconds of event time."""

    version_id: int
    model_id: int
    closed_until: int
    labelled_until: int
