"""Answers and labels in memory (see `memory`): they are kept as they came, and what they count is counted anew at every question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime

import numpy as np

from flywheel_common.arrays import Floats
from flywheel_common.clock import Clock
from flywheel_monitor.alert import Alert, Announcement
from flywheel_monitor.alerts import Kind
from flywheel_monitor.batches import (
    LABEL,
    IngestCounts,
    OutcomeColumns,
    PredictionColumns,
    Role,
    Segment,
    VariantKey,
    pack_kept,
)
from flywheel_monitor.comparison import VariantRows
from flywheel_monitor.evaluation import Judged, Report
from flywheel_monitor.layout import Layout, Window, usable_scores
from flywheel_monitor.panes import PaneAccumulator, add_panes, rows_of
from flywheel_monitor.performance import Quality, quality_of_window, with_kept_rows
from flywheel_monitor.policy import MonitorPolicy
from flywheel_monitor.references import ReferenceSource, WatchedVersion
from flywheel_monitor.resource_names import ModelName
from flywheel_monitor.windows import Frontier, Span


@dataclass(frozen=True, order=True)
class Label:
    """The largest wins."""

    event_time: int
    outcome_id: str
    value: float
    model_id: int


@dataclass(frozen=True)
class Answer:
    """One row of a batch."""

    batch: PredictionColumns
    row: int
    version_id: int

    @property
    def id(self) -> str:
        return self.batch.ids[self.row]

    @property
    def time(self) -> int:
        return int(self.batch.event_times[self.row])

    @property
    def segment(self) -> str:
        return self.batch.segments[self.row]


@dataclass(frozen=True)
class Queued:
    """A batch on its way to the archive."""

    model_id: int
    rows: int
    kept: bytes
    payload: bytes
    since: datetime
    segment: int | None = None


@dataclass
class Data:
    """Values are immutable, so copying the dictionaries copies everything."""

    models: dict[str, tuple[int, MonitorPolicy | None]] = field(default_factory=dict)
    versions: dict[int, WatchedVersion] = field(default_factory=dict)
    variants: dict[VariantKey, int] = field(default_factory=dict)
    """Newest event time of each."""
    answers: dict[tuple[str, bool], Answer] = field(default_factory=dict)
    labels: dict[str, Label] = field(default_factory=dict)
    forgotten: dict[int, tuple[Answer, Label | None]] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    counts: dict[int, IngestCounts] = field(default_factory=dict)
    """Per model; the orphans are looked for when they are asked for."""
    queue: dict[int, Queued] = field(default_factory=dict)
    """Oldest first."""
    segments: dict[int, tuple[Segment, tuple[int, int] | None]] = field(default_factory=dict)
    """With rows and newest event time once they are archived."""
    newest: dict[tuple[int, int], int] = field(default_factory=dict)
    newest_labels: dict[tuple[int, int], int] = field(default_factory=dict)
    """Of each (model, partition)."""
    frontiers: dict[int, Frontier] = field(default_factory=dict)
    reports: dict[tuple[int, Span], Report] = field(default_factory=dict)
    verdicts: dict[tuple[int, Kind, Span], Judged] = field(default_factory=dict)
    alerts: dict[int, tuple[int, Alert]] = field(default_factory=dict)
    """Oldest first, each with the number of its version."""
    announced: dict[tuple[int, Kind, str, Span], Announcement] = field(default_factory=dict)

    answered: dict[tuple[str, str, str], tuple[bytes, bytes]] = field(default_factory=dict)
    """(caller, method, request id) → (body, answer)."""

    def copy(self) -> Data:
        return Data(*(dict(getattr(self, f.name)) for f in fields(self)))

    def model(self, name: str) -> int:
        """Its number; a new one is known from now on."""
        return self.models.setdefault(name, (len(self.models) + 1, None))[0]

    def served(self, version_id: int) -> Iterator[tuple[Answer, Label | None]]:
        """Every answer of a version that was served, forgotten ones too, with its label."""
        kept = ((a, self.labels.get(a.id)) for a in self.answers.values())
        for answer, label in (*kept, *self.forgotten.values()):
            if answer.version_id == version_id and not answer.batch.shadow:
                yield answer, label


class MemoryAnswers:
    """Part of `Records`."""

    _data: Data
    _source: ReferenceSource
    _pane_us: int
    _clock: Clock

    async def version(self, name: str) -> WatchedVersion | None:
        return next((v for v in self._data.versions.values() if v.name == name), None)

    async def _admit(self, key: VariantKey) -> WatchedVersion:
        version = await self.version(key.model_version)
        if version is None:
            reference = await self._source.fetch(key.model_version)
            number, model = len(self._data.versions) + 1, self._data.model(key.model)
            layout = Layout.of(reference.columns)
            version = WatchedVersion(number, key.model_version, model, key.model, reference, layout)
            self._data.versions[number] = version
            self._data.frontiers[number] = Frontier(number, model, 0, 0)
        self._data.variants.setdefault(key, 0)
        return version

    async def add_predictions(self, partition: int, batches: Sequence[PredictionColumns]) -> None:
        data = self._data
        for batch in batches:
            version = await self._admit(batch.key)
            new = np.zeros(len(batch.ids), np.bool_)
            for row in range(len(batch.ids)):
                answer = Answer(batch, row, version.id)
                if data.answers.setdefault((answer.id, batch.shadow), answer) is not answer:
                    self._count(version.model_id, duplicates=1)
                    continue
                new[row] = True
                self._count(version.model_id, predictions=int(not batch.shadow))
                data.variants[batch.key] = max(data.variants[batch.key], answer.time)
                _raise(data.newest, (version.model_id, partition), answer.time)
            if new.any():
                data.queue[max(data.queue, default=0) + 1] = Queued(
                    version.model_id, int(new.sum()), pack_kept(new), batch.payload, self._clock.now()
                )

    async def add_outcomes(self, partition: int, batches: Sequence[OutcomeColumns]) -> None:
        data = self._data
        for batch in batches:
            model = data.model(batch.model)
            for row, prediction_id in enumerate(batch.prediction_ids):
                at, outcome_id = int(batch.event_times[row]), batch.outcome_ids[row]
                _raise(data.newest_labels, (model, partition), at)
                if batch.name != LABEL:
                    known = outcome_id in data.outcomes
                    data.outcomes[outcome_id] = model
                else:
                    known = prediction_id in data.labels
                    label = Label(at, outcome_id, float(batch.values[row]), model)
                    data.labels[prediction_id] = max(label, data.labels.get(prediction_id, label))
                self._count(model, outcomes=int(not known), duplicates=int(known))

    def _count(self, model: int, *, predictions: int = 0, outcomes: int = 0, duplicates: int = 0) -> None:
        c = self._data.counts.get(model, IngestCounts())
        self._data.counts[model] = IngestCounts(
            c.predictions + predictions, c.outcomes + outcomes, 0, c.duplicates + duplicates
        )

    async def window(self, version: WatchedVersion, span: Span, segment: str = "") -> Window:
        panes = PaneAccumulator(version.layout, self._pane_us)
        served = list(self._data.served(version.id))
        for batch, keep in _by_batch(answer for answer, _ in served):
            panes.add_rows(rows_of(batch, keep))
        labelled = [(a, label) for a, label in served if label is not None and _usable(a)]
        times, segments = [a.time for a, _ in labelled], tuple(a.segment for a, _ in labelled)
        scores, labels = _scores(labelled)
        panes.add_labels(
            np.array(times, np.int64), segments, False, scores, labels, np.ones(len(times), np.int64)
        )
        counted = panes.merge({}) if panes else {}
        wanted = [p for k, p in counted.items() if k.segment == segment and _within(k.start_us, span)]
        return add_panes(version.layout, wanted)

    async def quality(self, version_id: int, span: Span, window: Window, segment: str = "") -> Quality:
        kept = ((a, self._data.labels.get(a.id)) for a in self._data.answers.values())
        rows = [
            (a, label)
            for a, label in kept
            if label is not None and _usable(a) and self._is_served(a, version_id, span, segment)
        ]
        return with_kept_rows(quality_of_window(window), *_scores(rows))

    async def variant_rows(self, rollout: str, release: str, role: Role, since_us: int) -> VariantRows:
        rows = [
            a
            for a in self._data.answers.values()
            if (a.batch.key.rollout, a.batch.key.release, a.batch.key.role) == (rollout, release, role)
            and a.time >= since_us
        ]
        labels = [self._data.labels.get(a.id) for a in rows]
        return VariantRows(
            ids=tuple(a.id for a in rows),
            event_times=np.array([a.time for a in rows], np.int64),
            scores=np.array([a.batch.scores[a.row] for a in rows], np.float64),
            labels=np.array([np.nan if v is None else v.value for v in labels], np.float64),
            decisions=np.array([a.batch.decisions[a.row] for a in rows], np.bool_),
            latencies_ms=np.array([a.batch.latencies_ms[a.row] for a in rows], np.float64),
            usable=np.array([_usable(a) for a in rows], np.bool_),
            failed=np.array([a.batch.failed[a.row] for a in rows], np.bool_),
        )

    async def event_range(self, version_id: int, span: Span, segment: str) -> tuple[int | None, int | None]:
        times = [a.time for a in self._data.answers.values() if self._is_served(a, version_id, span, segment)]
        return min(times, default=None), max(times, default=None)

    async def counts(self, project: str) -> IngestCounts:
        mine = self._models(project)
        found = [c for model, c in self._data.counts.items() if model in mine]
        orphans = sum(
            label.model_id in mine and (prediction_id, False) not in self._data.answers
            for prediction_id, label in self._data.labels.items()
        )
        return IngestCounts(
            sum(c.predictions for c in found),
            sum(c.outcomes for c in found),
            orphans,
            sum(c.duplicates for c in found),
        )

    async def newest(self, project: str) -> int | None:
        mine = self._models(project)
        return max((time for (model, _), time in self._data.newest.items() if model in mine), default=None)

    async def prune(self, keep_us: int) -> int:
        data, newest = self._data, dict[int, int]()
        for (model, _), time in data.newest.items():
            newest[model] = max(newest.get(model, time), time)
        old = [
            (key, a)
            for key, a in data.answers.items()
            if a.time < newest[data.versions[a.version_id].model_id] - keep_us
        ]
        for _, answer in old:
            data.forgotten[len(data.forgotten)] = answer, data.labels.get(answer.id)
        for key, answer in old:
            del data.answers[key]
            data.labels.pop(answer.id, None)
        return len(old)

    def _models(self, project: str) -> set[int]:
        return {n for name, (n, _) in self._data.models.items() if ModelName.parse(name).project == project}

    @staticmethod
    def _is_served(answer: Answer, version_id: int, span: Span, segment: str) -> bool:
        return (
            answer.version_id == version_id
            and not answer.batch.shadow
            and _within(answer.time, span)
            and segment in ("", answer.segment)
        )


def _within(time: int, span: Span) -> bool:
    return span.start_us <= time < span.end_us


def _usable(answer: Answer) -> bool:
    at = slice(answer.row, answer.row + 1)
    return bool(usable_scores(answer.batch.scores[at], answer.batch.sources[at]).all())


def _scores(rows: Sequence[tuple[Answer, Label]]) -> tuple[Floats, Floats]:
    scores = np.array([a.batch.scores[a.row] for a, _ in rows], np.float64)
    return scores, np.array([label.value for _, label in rows], np.float64)


def _by_batch(answers: Iterable[Answer]) -> Iterator[tuple[PredictionColumns, np.ndarray]]:
    """Each batch with a mask of those of its rows that are among the answers."""
    found: dict[int, tuple[PredictionColumns, np.ndarray]] = {}
    for answer in answers:
        batch = answer.batch
        mask = found.setdefault(id(batch), (batch, np.zeros(len(batch.ids), np.bool_)))[1]
        mask[answer.row] = True
    yield from found.values()


def _raise(newest: dict[tuple[int, int], int], at: tuple[int, int], time: int) -> None:
    newest[at] = max(newest.get(at, time), time)
