"""The rows of the in-memory store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, fields
from datetime import datetime

from flywheel_common.webhooks.webhook import Webhook
from flywheel_monitor.alerts.alert import Alert
from flywheel_monitor.alerts.drift_event import DriftAnnouncement
from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.alerts.silence import Silence
from flywheel_monitor.archive.queue import Segment
from flywheel_monitor.evaluation.ports import Frontier
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.verdicts import WindowVerdict
from flywheel_monitor.experiments.experiment import Experiment
from flywheel_monitor.experiments.tally import Subject, SubjectEvent, Tally
from flywheel_monitor.ingest.batches import (
    IngestCounts,
    PredictionColumns,
    VariantKey,
)
from flywheel_monitor.ingest.labels import Label
from flywheel_monitor.models.names import ModelName
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.span import Span
from flywheel_monitor.windows.support import reached_time


@dataclass(frozen=True)
class StoredLabel:
    label: Label
    model_id: int


@dataclass(frozen=True)
class StoredPrediction:
    """One row of a batch."""

    batch: PredictionColumns
    row: int
    version_id: int
    arrived_at: datetime

    @property
    def id(self) -> str:
        return self.batch.ids[self.row]

    @property
    def key(self) -> tuple[str, str, VariantKey | None]:
        """Its identity."""
        return self.batch.key.model, self.id, self.batch.key if self.batch.shadow else None

    @property
    def labelled_by(self) -> tuple[str, str]:
        """The key of its label."""
        return self.batch.key.model, self.id

    @property
    def time(self) -> int:
        return int(self.batch.event_times[self.row])

    @property
    def segment(self) -> str:
        return self.batch.segments[self.row]


@dataclass(frozen=True)
class Queued:
    """A batch that waits for the archive."""

    model_id: int
    rows: int
    kept: bytes
    payload: bytes
    since: datetime
    segment: int | None = None


@dataclass
class Data:
    """All rows. Values are immutable, so that a copy of the dictionaries is a copy of everything."""

    models: dict[str, tuple[int, MonitorPolicy | None]] = field(default_factory=dict)
    versions: dict[int, WatchedVersion] = field(default_factory=dict)
    variants: dict[VariantKey, None] = field(default_factory=dict)
    """Every variant, oldest first."""
    predictions: dict[tuple[str, str, VariantKey | None], StoredPrediction] = field(default_factory=dict)
    """By (model, id, None or the shadow's variant)."""
    labels: dict[tuple[str, str], StoredLabel] = field(default_factory=dict)
    """By (model, prediction id)."""
    pruned: dict[int, tuple[StoredPrediction, StoredLabel | None]] = field(default_factory=dict)
    outcomes: set[tuple[int, str]] = field(default_factory=set)
    business: dict[tuple[int, str], list[tuple[str, float]]] = field(default_factory=dict)
    """(model, prediction id) → (name, value) of its outcomes but the label."""
    counts: dict[int, IngestCounts] = field(default_factory=dict)
    """By model; orphans are counted when they are read."""
    queue: dict[int, Queued] = field(default_factory=dict)
    """Oldest first."""
    segments: dict[int, tuple[Segment, tuple[int, int] | None]] = field(default_factory=dict)
    """Each with its rows and newest event time once it is completed."""
    recent: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    recent_labels: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """Times of the last events by (model, partition), in order of arrival."""
    waiting: dict[int, tuple[int, PredictionColumns]] = field(default_factory=dict)
    """Partition and batch that wait for a reference, the oldest first."""
    late: dict[tuple[int, int], int] = field(default_factory=dict)
    """(version, start of a pane) → late predictions."""
    late_pending: set[tuple[int, int]] = field(default_factory=set)
    frontiers: dict[int, Frontier] = field(default_factory=dict)
    reports: dict[tuple[int, Span], Report] = field(default_factory=dict)
    verdicts: dict[tuple[int, Kind, Span], WindowVerdict] = field(default_factory=dict)
    alerts: dict[int, tuple[int, Alert]] = field(default_factory=dict)
    """Oldest first, each with the id of its version."""
    sinks: dict[tuple[str, str], Webhook] = field(default_factory=dict)
    silences: dict[tuple[str, Kind | None], Silence] = field(default_factory=dict)
    deliveries: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    """(project, sink, event id) → body, in order."""
    announced: dict[tuple[int, Kind, str, Span], DriftAnnouncement] = field(default_factory=dict)
    experiments: dict[str, tuple[Experiment, Tally]] = field(default_factory=dict)
    """By name, oldest first."""
    experiment_events: tuple[SubjectEvent, ...] = ()
    subjects: dict[tuple[int, str], Subject] = field(default_factory=dict)
    """(experiment, subject) → what is known of it."""
    responses: dict[tuple[str, str, str], tuple[bytes, bytes]] = field(default_factory=dict)
    """(caller, method, request id) → (body, response)."""

    def copy(self) -> Data:
        return Data(*(copy(getattr(self, f.name)) for f in fields(self)))

    def model(self, name: str) -> int:
        """The id of the model, which is created if it is new."""
        return self.models.setdefault(name, (len(self.models) + 1, None))[0]

    def models_of(self, project: str) -> set[int]:
        return {n for name, (n, _) in self.models.items() if ModelName.parse(name).project == project}

    def reached(self) -> dict[tuple[int, int], int]:
        """(model, partition) → the event time that its predictions have reached."""
        return _reached(self.recent)

    def reached_labels(self) -> dict[tuple[int, int], int]:
        """(model, partition) → the time that its outcomes have reached."""
        return _reached(self.recent_labels)

    def served(self, version_id: int) -> Iterator[tuple[StoredPrediction, StoredLabel | None]]:
        """Every served prediction of a version, also pruned ones, with its label."""
        stored = ((p, self.labels.get(p.labelled_by)) for p in self.predictions.values())
        for prediction, label in (*stored, *self.pruned.values()):
            if prediction.version_id == version_id and not prediction.batch.shadow:
                yield prediction, label


def _reached(recent: Mapping[tuple[int, int], list[int]]) -> dict[tuple[int, int], int]:
    times = {at: reached_time(mine) for at, mine in recent.items()}
    return {at: time for at, time in times.items() if time is not None}
