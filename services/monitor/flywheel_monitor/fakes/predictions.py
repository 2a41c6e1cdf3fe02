"""Ingestion and predictions in memory: batches are stored as they are, and counted anew for every read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from flywheel_common.clock import Clock
from flywheel_common.errors import FlywheelError
from flywheel_monitor.archive.queue import pack_kept
from flywheel_monitor.comparison.ports import VariantName
from flywheel_monitor.fakes.data import Data, Queued, StoredLabel, StoredPrediction
from flywheel_monitor.fakes.experiments import note_label, note_outcome, note_prediction
from flywheel_monitor.fakes.versions import MemoryVersions
from flywheel_monitor.ingest.answers import Answer, Known, Pair, labelled_rows, paired_rows
from flywheel_monitor.ingest.batches import (
    LABEL,
    IngestCounts,
    OutcomeColumns,
    PredictionColumns,
    Role,
    rows_of,
)
from flywheel_monitor.ingest.labels import Label
from flywheel_monitor.models.names import ModelName
from flywheel_monitor.performance.quality import EXACT_AUC_ROWS, Quality, quality, with_exact_auc
from flywheel_monitor.references.ports import ReferenceSource
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.lateness import late_rows
from flywheel_monitor.windows.layout import Layout
from flywheel_monitor.windows.pane_sums import sum_panes
from flywheel_monitor.windows.panes import PaneAccumulator
from flywheel_monitor.windows.pieces import DAY_US
from flywheel_monitor.windows.rows import usable_scores
from flywheel_monitor.windows.span import ALL_TIME, Span
from flywheel_monitor.windows.support import covered, with_recent


class MemoryPredictions(MemoryVersions):
    """`Ingestion`, `IngestStatus`, `CountedWindows`, `LabelledPredictions`, `VariantCounts` and
    `Retention` in memory."""

    _data: Data
    _source: ReferenceSource
    _pane_us: int
    _clock: Clock

    async def add_predictions(self, partition: int, batches: Sequence[PredictionColumns]) -> None:
        data = self._data
        for batch in batches:
            try:
                version = await self._add_version(batch)
            except FlywheelError as error:
                if not error.retryable:
                    raise
                data.waiting[len(data.waiting) + 1] = partition, batch
                continue
            new = np.zeros(len(batch.ids), np.bool_)
            for row in range(len(batch.ids)):
                prediction = StoredPrediction(batch, row, version.id, self._clock.now())
                if data.predictions.setdefault(prediction.key, prediction) is not prediction:
                    self._count(version.model_id, duplicates=1)
                    continue
                new[row] = True
                self._count(version.model_id, predictions=int(not batch.shadow))
                if not batch.shadow:
                    note_prediction(data, prediction)
                    self._add_late(version, prediction.time)
                    _advance(data.recent, (version.model_id, partition), prediction.time)
            for record, kept in batch.kept_records(new):
                data.queue[max(data.queue, default=0) + 1] = Queued(
                    version.model_id, int(kept.sum()), pack_kept(kept), record.payload, self._clock.now()
                )

    async def late_by_model(self, project: str, limit: int) -> list[tuple[str, int]]:
        late = {n: c.late for n, c in self._data.counts.items() if c.late}
        mine = [(name, late[n]) for name, (n, _) in self._data.models.items() if n in late]
        mine = [one for one in mine if ModelName.parse(one[0]).project == project]
        return sorted(mine, key=lambda one: (-one[1], one[0]))[:limit]

    async def waiting_versions(self) -> list[str]:
        return sorted({batch.key.model_version for _, batch in self._data.waiting.values()})

    async def count_waiting(self, model_version: str) -> int:
        mine = {n: b for n, b in self._data.waiting.items() if b[1].key.model_version == model_version}
        for number, (partition, batch) in mine.items():
            await self._add_version(batch)
            del self._data.waiting[number]
            await self.add_predictions(partition, [batch])
        return len(mine)

    async def waiting_rows(self, project: str) -> int:
        batches = [batch for _, batch in self._data.waiting.values()]
        return sum(len(b.ids) for b in batches if ModelName.parse(b.key.model).project == project)

    async def add_outcomes(self, partition: int, batches: Sequence[OutcomeColumns]) -> None:
        data = self._data
        for batch in batches:
            model = data.model(batch.model)
            for row, prediction_id in enumerate(batch.prediction_ids):
                at, outcome_id = int(batch.event_times[row]), batch.outcome_ids[row]
                if batch.name != LABEL:
                    known = (model, outcome_id) in data.outcomes
                    if not known:
                        _advance(data.recent_labels, (model, partition), at)
                        note_outcome(data, batch, row)
                    data.outcomes.add((model, outcome_id))
                else:
                    key = batch.model, prediction_id
                    known = key in data.labels
                    label = Label(at, outcome_id, float(batch.values[row]), batch.class_names[row])
                    stored = data.labels.get(key)
                    if stored is None or label.replaces(stored.label):
                        note_label(data, key, label.value - (stored.label.value if stored else 0.0))
                        data.labels[key] = StoredLabel(label, model)
                        _advance(data.recent_labels, (model, partition), at)
                self._count(model, outcomes=int(not known), duplicates=int(known))

    def _count(
        self, model: int, *, predictions: int = 0, outcomes: int = 0, duplicates: int = 0, late: int = 0
    ) -> None:
        c = self._data.counts.get(model, IngestCounts())
        self._data.counts[model] = IngestCounts(
            c.predictions + predictions, c.outcomes + outcomes, 0, c.duplicates + duplicates, c.late + late
        )

    def _add_late(self, version: WatchedVersion, time: int) -> None:
        frontier = self._data.frontiers[version.id]
        late = late_rows([time], frontier.closed_until, frontier.labelled_until, self._pane_us)
        for start in late.panes:
            self._data.late[version.id, start] = self._data.late.get((version.id, start), 0) + 1
            self._data.late_pending.add((version.id, start))
        self._count(version.model_id, late=late.too_late)

    async def window(self, version: WatchedVersion, span: Span, segment: str = "") -> WindowCounts:
        return self._counted(version, list(self._data.served(version.id)), span, segment)

    def _counted(
        self,
        version: WatchedVersion,
        rows: Sequence[tuple[StoredPrediction, StoredLabel | None]],
        span: Span,
        segment: str,
        pairs: Sequence[Pair] = (),
    ) -> WindowCounts:
        panes = PaneAccumulator(version.layout, self._pane_us)
        for batch, keep in _by_batch(prediction for prediction, _ in rows):
            panes.add_rows(rows_of(batch, keep))
        labelled = [(_answer(a), _known(stored)) for a, stored in rows if stored is not None]
        panes.add_labels(labelled_rows(version.output, labelled))
        panes.add_pairs(paired_rows(version.output, pairs))
        counted = panes.merge({}) if panes else {}
        wanted = [
            (k.start_us, p) for k, p in counted.items() if k.segment == segment and _within(k.start_us, span)
        ]
        return sum_panes(version.layout, wanted)

    async def quality(self, version_id: int, span: Span, window: WindowCounts, segment: str = "") -> Quality:
        found = quality(window)
        if found.auc is None or window.predictions > EXACT_AUC_ROWS:
            return found
        kept = ((a, self._data.labels.get(a.labelled_by)) for a in self._data.predictions.values())
        rows = [
            (float(a.batch.scores[a.row]), stored.label.value)
            for a, stored in kept
            if stored is not None and _usable(a) and self._is_served(a, version_id, span, segment)
        ]
        return with_exact_auc(found, np.array([s for s, _ in rows]), np.array([v for _, v in rows]))

    async def variant_windows(self, names: Sequence[VariantName], since_us: int) -> list[WindowCounts]:
        return [self._variant_window(name, since_us) for name in names]

    def _variant_window(self, name: VariantName, since_us: int) -> WindowCounts:
        rows = [(a, self._data.labels.get(a.labelled_by)) for a in self._of_variant(name, since_us)]
        deleted = self._data.pruned.values()
        rows += [(a, stored) for a, stored in deleted if _is_of(a, name) and a.time >= since_us]
        if not rows:
            return sum_panes(Layout.of(()), ())
        version = self._data.versions[rows[0][0].version_id]
        pairs = []
        for shadow, stored in rows:
            champion = self._data.predictions.get((shadow.batch.key.model, shadow.id, None))
            if name.role == Role.SHADOW and champion is not None and _is_pair(champion, shadow):
                known = None if stored is None else _known(stored)
                pairs.append(Pair(_answer(champion), _answer(shadow), known))
        return self._counted(version, rows, ALL_TIME, "", pairs)

    async def covered(
        self, names: Sequence[VariantName], since_us: int, total: int
    ) -> tuple[int, int] | None:
        times = [a.time for name in names for a in self._of_variant(name, since_us)]
        return covered(np.array(times, np.int64))

    def _of_variant(self, name: VariantName, since_us: int) -> list[StoredPrediction]:
        return [a for a in self._data.predictions.values() if _is_of(a, name) and a.time >= since_us]

    async def event_range(
        self, version: WatchedVersion, span: Span, segment: str
    ) -> tuple[int | None, int | None]:
        version_id = version.id
        stored = [
            a.time for a in self._data.predictions.values() if self._is_served(a, version_id, span, segment)
        ]
        pruned = [
            a.time // self._pane_us * self._pane_us
            for a, _ in self._data.pruned.values()
            if self._is_served(a, version_id, span, segment)
        ]
        return min(stored + pruned, default=None), max(stored + pruned, default=None)

    async def compact(self, keep_us: int) -> int:
        # Windows are counted from the rows; only the range of a read is widened, as in PostgreSQL.
        day, reached = DAY_US, self._data.reached()
        for number, version in self._data.versions.items():
            times = [t for (model, _), t in reached.items() if model == version.model_id]
            boundary = (max(times, default=0) - keep_us) // day * day
            if boundary > version.minutes_from_us:
                self._data.versions[number] = replace(version, minutes_from_us=boundary)
        return 0

    async def counts(self, project: str) -> IngestCounts:
        mine = self._data.models_of(project)
        found = [c for model, c in self._data.counts.items() if model in mine]
        orphans = sum(
            label.model_id in mine and (*key, None) not in self._data.predictions
            for key, label in self._data.labels.items()
        )
        return IngestCounts(
            sum(c.predictions for c in found),
            sum(c.outcomes for c in found),
            orphans,
            sum(c.duplicates for c in found),
            sum(c.late for c in found),
        )

    async def reached(self, project: str) -> int | None:
        mine = self._data.models_of(project)
        return max((time for (model, _), time in self._data.reached().items() if model in mine), default=None)

    async def segments(self, version: WatchedVersion, limit: int) -> list[str]:
        stored = [*self._data.predictions.values(), *(a for a, _ in self._data.pruned.values())]
        found = {a.segment for a in stored if self._is_served(a, version.id, ALL_TIME, "")}
        return sorted(found - {""})[:limit]

    async def prune(self, arrived_before: datetime) -> int:
        data = self._data
        old = [(key, a) for key, a in data.predictions.items() if a.arrived_at < arrived_before]
        for _, prediction in old:
            data.pruned[len(data.pruned)] = prediction, data.labels.get(prediction.labelled_by)
        for key, prediction in old:
            del data.predictions[key]
            data.labels.pop(prediction.labelled_by, None)
        return len(old)

    @staticmethod
    def _is_served(prediction: StoredPrediction, version_id: int, span: Span, segment: str) -> bool:
        return (
            prediction.version_id == version_id
            and not prediction.batch.shadow
            and _within(prediction.time, span)
            and segment in ("", prediction.segment)
        )


def _within(time: int, span: Span) -> bool:
    return span.start_us <= time < span.end_us


def _usable(prediction: StoredPrediction) -> bool:
    at = slice(prediction.row, prediction.row + 1)
    return bool(usable_scores(prediction.batch.scores[at], prediction.batch.sources[at]).all())


def _answer(prediction: StoredPrediction) -> Answer:
    batch, row = prediction.batch, prediction.row
    return Answer(
        prediction.time,
        prediction.segment,
        float(batch.scores[row]),
        int(batch.sources[row]),
        bool(batch.decisions[row]),
        batch.outputs[row],
    )


def _is_of(prediction: StoredPrediction, name: VariantName) -> bool:
    key = prediction.batch.key
    roles = (key.role,) if prediction.batch.shadow else (key.role, Role.UNSPECIFIED)
    return (
        (name.rollout, name.release) == (key.rollout, key.release)
        and name.generation in (0, key.generation)
        and name.role in roles
    )


def _known(stored: StoredLabel) -> Known:
    return Known(stored.label.value, stored.label.class_name, event_time=stored.label.event_time)


def _is_pair(champion: StoredPrediction, shadow: StoredPrediction) -> bool:
    a, b = champion.batch, shadow.batch
    return b.key.shadows(a.key) and a.output.same(b.output)


def _by_batch(predictions: Iterable[StoredPrediction]) -> Iterator[tuple[PredictionColumns, np.ndarray]]:
    """Each batch with a mask of its rows that are among the predictions."""
    found: dict[int, tuple[PredictionColumns, np.ndarray]] = {}
    for prediction in predictions:
        batch = prediction.batch
        mask = found.setdefault(id(batch), (batch, np.zeros(len(batch.ids), np.bool_)))[1]
        mask[prediction.row] = True
    yield from found.values()


def _advance(recent: dict[tuple[int, int], list[int]], at: tuple[int, int], time: int) -> None:
    recent[at] = with_recent(recent.get(at, ()), [time])
