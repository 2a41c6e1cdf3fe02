"""Ingestion and predictions in memory: batches are stored as they are, and counted anew for every read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from flywheel_common.arrays import Floats
from flywheel_common.clock import Clock
from flywheel_monitor.archive.queue import pack_kept
from flywheel_monitor.comparison.variants import VariantRows
from flywheel_monitor.fakes.data import Data, Queued, StoredLabel, StoredPrediction
from flywheel_monitor.fakes.versions import MemoryVersions
from flywheel_monitor.ingest.batches import (
    LABEL,
    IngestCounts,
    OutcomeColumns,
    PredictionColumns,
    Role,
    rows_of,
)
from flywheel_monitor.ingest.labels import Label
from flywheel_monitor.performance.quality import Quality, quality, totals_of_window, with_exact_auc
from flywheel_monitor.references.ports import ReferenceSource
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.counts import WindowCounts
from flywheel_monitor.windows.panes import PaneAccumulator, sum_panes
from flywheel_monitor.windows.rows import usable_scores
from flywheel_monitor.windows.span import Span
from flywheel_monitor.windows.support import with_recent


class MemoryPredictions(MemoryVersions):
    """`Ingestion`, `IngestStatus`, `CountedWindows`, `LabelledPredictions`, `VariantPredictions` and
    `Retention` in memory."""

    _data: Data
    _source: ReferenceSource
    _pane_us: int
    _clock: Clock

    async def add_predictions(self, partition: int, batches: Sequence[PredictionColumns]) -> None:
        data = self._data
        for batch in batches:
            version = await self._add_version(batch.key)
            new = np.zeros(len(batch.ids), np.bool_)
            for row in range(len(batch.ids)):
                prediction = StoredPrediction(batch, row, version.id)
                if data.predictions.setdefault(prediction.key, prediction) is not prediction:
                    self._count(version.model_id, duplicates=1)
                    continue
                new[row] = True
                self._count(version.model_id, predictions=int(not batch.shadow))
                if not batch.shadow:
                    _advance(data.recent, (version.model_id, partition), prediction.time)
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
                if batch.name != LABEL:
                    known = (model, outcome_id) in data.outcomes
                    if not known:
                        _advance(data.recent_labels, (model, partition), at)
                    data.outcomes.add((model, outcome_id))
                else:
                    key = batch.model, prediction_id
                    known = key in data.labels
                    label = Label(at, outcome_id, float(batch.values[row]))
                    stored = data.labels.get(key)
                    if stored is None or label.replaces(stored.label):
                        data.labels[key] = StoredLabel(label, model)
                        _advance(data.recent_labels, (model, partition), at)
                self._count(model, outcomes=int(not known), duplicates=int(known))

    def _count(self, model: int, *, predictions: int = 0, outcomes: int = 0, duplicates: int = 0) -> None:
        c = self._data.counts.get(model, IngestCounts())
        self._data.counts[model] = IngestCounts(
            c.predictions + predictions, c.outcomes + outcomes, 0, c.duplicates + duplicates
        )

    async def window(self, version: WatchedVersion, span: Span, segment: str = "") -> WindowCounts:
        panes = PaneAccumulator(version.layout, self._pane_us)
        served = list(self._data.served(version.id))
        for batch, keep in _by_batch(prediction for prediction, _ in served):
            panes.add_rows(rows_of(batch, keep))
        labelled = [(a, label) for a, label in served if label is not None and _usable(a)]
        times, segments = [a.time for a, _ in labelled], tuple(a.segment for a, _ in labelled)
        scores, labels = _scores(labelled)
        panes.add_labels(
            np.array(times, np.int64), segments, False, scores, labels, np.ones(len(times), np.int64)
        )
        counted = panes.merge({}) if panes else {}
        wanted = [
            (k.start_us, p) for k, p in counted.items() if k.segment == segment and _within(k.start_us, span)
        ]
        return sum_panes(version.layout, wanted)

    async def quality(self, version_id: int, span: Span, window: WindowCounts, segment: str = "") -> Quality:
        kept = ((a, self._data.labels.get(a.labelled_by)) for a in self._data.predictions.values())
        rows = [
            (a, label)
            for a, label in kept
            if label is not None and _usable(a) and self._is_served(a, version_id, span, segment)
        ]
        return with_exact_auc(quality(totals_of_window(window)), *_scores(rows))

    async def variant_rows(
        self, rollout: str, release: str, role: Role, since_us: int, generation: int
    ) -> VariantRows:
        rows = [
            a
            for a in self._data.predictions.values()
            if (a.batch.key.rollout, a.batch.key.release, a.batch.key.role) == (rollout, release, role)
            and a.time >= since_us
            and generation in (0, a.batch.key.generation)
        ]
        labels = [self._data.labels.get(a.labelled_by) for a in rows]
        return VariantRows(
            ids=tuple(a.id for a in rows),
            event_times=np.array([a.time for a in rows], np.int64),
            scores=np.array([a.batch.scores[a.row] for a in rows], np.float64),
            labels=np.array([np.nan if v is None else v.label.value for v in labels], np.float64),
            decisions=np.array([a.batch.decisions[a.row] for a in rows], np.bool_),
            latencies_ms=np.array([a.batch.latencies_ms[a.row] for a in rows], np.float64),
            usable=np.array([_usable(a) for a in rows], np.bool_),
            failed=np.array([a.batch.failed[a.row] for a in rows], np.bool_),
        )

    async def event_range(self, version_id: int, span: Span, segment: str) -> tuple[int | None, int | None]:
        times = [
            a.time for a in self._data.predictions.values() if self._is_served(a, version_id, span, segment)
        ]
        return min(times, default=None), max(times, default=None)

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
        )

    async def reached(self, project: str) -> int | None:
        mine = self._data.models_of(project)
        return max((time for (model, _), time in self._data.reached().items() if model in mine), default=None)

    async def prune(self, keep_us: int) -> int:
        data, reached = self._data, dict[int, int]()
        for (model, _), time in data.reached().items():
            reached[model] = max(reached.get(model, time), time)
        old = [
            (key, a)
            for key, a in data.predictions.items()
            if a.time < reached.get(data.versions[a.version_id].model_id, a.time) - keep_us
        ]
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


def _scores(rows: Sequence[tuple[StoredPrediction, StoredLabel]]) -> tuple[Floats, Floats]:
    scores = np.array([a.batch.scores[a.row] for a, _ in rows], np.float64)
    return scores, np.array([stored.label.value for _, stored in rows], np.float64)


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
