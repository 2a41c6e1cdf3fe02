"""Watermarks: up to which event time a model's stream is read, so that earlier windows are complete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PartitionProgress:
    """Newest event time seen in a partition, and whether every record that the broker holds for it was
    read."""

    newest_us: int
    caught_up: bool


def watermark(partitions: Iterable[PartitionProgress]) -> int | None:
    """Event time up to which all partitions are read: the oldest of the newest events of those with unread
    records; if all are read, the newest event of all. None without any partition."""
    known = list(partitions)
    if not known:
        return None
    unread = [p.newest_us for p in known if not p.caught_up]
    return min(unread) if unread else max(p.newest_us for p in known)


@dataclass(frozen=True)
class UnreadPartitions:
    """Partitions of each topic with records that are not read yet."""

    predictions: frozenset[int] = frozenset()
    outcomes: frozenset[int] = frozenset()


@dataclass(frozen=True)
class NewestEvents:
    """How far a store has read: model id → partition → newest event time of a prediction (`predictions`),
    and the newest time at which an outcome became known (`labels`)."""

    predictions: Mapping[int, Mapping[int, int]]
    labels: Mapping[int, Mapping[int, int]]


@dataclass(frozen=True)
class Watermarks:
    """Event time up to which a model's predictions are read, and up to which its predictions and its
    labels are read (None: unknown)."""

    predictions: int
    labels: int | None


def progress(newest: Mapping[int, int], unread: frozenset[int]) -> list[PartitionProgress]:
    """The progress of a model's partitions (number → newest event time). Empty while a partition with
    unread records has shown no event of the model: its unread records may be older than everything that
    was read."""
    if not unread <= newest.keys():
        return []
    return [PartitionProgress(time, partition not in unread) for partition, time in newest.items()]


def watermarks(newest: NewestEvents, unread: UnreadPartitions) -> dict[int, Watermarks]:
    """model id → its watermarks; models without a known watermark are left out."""
    found: dict[int, Watermarks] = {}
    for model_id, predictions in newest.predictions.items():
        mark = watermark(progress(predictions, unread.predictions))
        if mark is None:
            continue
        labels = newest.labels.get(model_id, {})
        label_mark = watermark(progress(labels, unread.outcomes)) if unread.outcomes else mark
        found[model_id] = Watermarks(mark, None if label_mark is None else min(mark, label_mark))
    return found
