"""Watermarks: up to which event time a model's stream is read, so that earlier windows are complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PartitionProgress:
    """The event time that a partition has reached (`support.reached_time`), and whether every record that
    the broker holds for it was read."""

    reached_us: int
    caught_up: bool


def watermark(partitions: Iterable[PartitionProgress]) -> int | None:
    """Event time up to which all partitions are read: the oldest that those with unread records have
    reached; if all are read, the newest that any has reached. None without any partition."""
    known = list(partitions)
    if not known:
        return None
    unread = [p.reached_us for p in known if not p.caught_up]
    return min(unread) if unread else max(p.reached_us for p in known)


@dataclass(frozen=True)
class UnreadPartitions:
    """Partitions of each topic with records that are not read yet."""

    predictions: frozenset[int] = frozenset()
    outcomes: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ReachedTimes:
    """How far a store has read: model id → partition → the event time that its predictions have reached, and
    the time that its outcomes (when they became known) have reached. Partitions with too few events are left
    out."""

    predictions: Mapping[int, Mapping[int, int]]
    labels: Mapping[int, Mapping[int, int]]


@dataclass(frozen=True)
class Watermarks:
    """Event time up to which a model's predictions are read, and up to which its predictions and its
    labels are read (None: unknown)."""

    predictions: int
    labels: int | None


def progress(reached: Mapping[int, int], unread: frozenset[int]) -> list[PartitionProgress]:
    """The progress of a model's partitions (number → reached event time). Empty while a partition with
    unread records has shown too few events of the model: its unread records may be older than everything
    that was read."""
    if not unread <= reached.keys():
        return []
    return [PartitionProgress(time, partition not in unread) for partition, time in reached.items()]


def watermarks(reached: ReachedTimes, unread: UnreadPartitions) -> dict[int, Watermarks]:
    """model id → its watermarks; models without a known watermark are left out."""
    found: dict[int, Watermarks] = {}
    for model_id, predictions in reached.predictions.items():
        mark = watermark(progress(predictions, unread.predictions))
        if mark is None:
            continue
        labels = reached.labels.get(model_id, {})
        label_mark = watermark(progress(labels, unread.outcomes)) if unread.outcomes else mark
        found[model_id] = Watermarks(mark, None if label_mark is None else min(mark, label_mark))
    return found
