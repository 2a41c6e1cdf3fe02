"""Ingestion into PostgreSQL: each prediction and outcome counts once, in the transaction that moves the
consumer's position.

One consumer at a time works on a partition, and both topics are partitioned by prediction id, so that a
prediction and its label never race. Rows are written in bulk; only rows that were new are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from flywheel_common.arrays import Floats, Ints, Mask
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.archive.queue import pack_kept
from flywheel_monitor.ingest.batches import LABEL, OutcomeColumns, PredictionColumns, rows_of
from flywheel_monitor.ingest.labels import Label
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.store.postgres.panes import merge_panes
from flywheel_monitor.store.postgres.progress import advance
from flywheel_monitor.store.postgres.versions import VersionCache
from flywheel_monitor.windows.panes import PaneAccumulator
from flywheel_monitor.windows.rows import Rows, usable_scores
from flywheel_monitor.windows.support import RECENT

_INSERT = """
INSERT INTO prediction (model_id, prediction_id, shadow_variant, variant_id, event_time, score, decision,
    failed, source, latency_ms, segment, partition)
SELECT *, $12 FROM unnest($1::integer[], $2::text[], $3::integer[], $4::integer[], $5::bigint[], $6::float8[],
    $7::boolean[], $8::boolean[], $9::smallint[], $10::real[], $11::text[])
ON CONFLICT DO NOTHING RETURNING model_id, prediction_id, shadow_variant
"""
_LABELS = """
SELECT model_id, prediction_id, value, event_time, outcome_id FROM label
WHERE (model_id, prediction_id) IN (SELECT * FROM unnest($1::integer[], $2::text[]))
"""
_ORPHANS = "SELECT coalesce(sum(orphans), 0) FROM ingest_count WHERE partition = $1"
_ADD_LABELS = """
INSERT INTO label (prediction_id, value, event_time, outcome_id, partition, model_id)
SELECT *, $5, $6 FROM unnest($1::text[], $2::float8[], $3::bigint[], $4::text[])
ON CONFLICT DO NOTHING RETURNING prediction_id
"""
_CORRECT_LABELS = """
UPDATE label l SET value = n.value, event_time = n.event_time, outcome_id = n.outcome_id
FROM unnest($1::text[], $2::float8[], $3::bigint[], $4::text[])
    AS n (prediction_id, value, event_time, outcome_id)
WHERE l.model_id = $5 AND l.prediction_id = n.prediction_id
"""
_LABELLED_ROWS = """
SELECT prediction_id, shadow_variant, variant_id, event_time, score, source, segment FROM prediction
    WHERE model_id = $1 AND prediction_id = ANY($2::text[])
"""
_ADD_OUTCOMES = """
INSERT INTO outcome (outcome_id, prediction_id, value, event_time, model_id, name)
SELECT *, $5, $6 FROM unnest($1::text[], $2::text[], $3::float8[], $4::bigint[])
    ON CONFLICT DO NOTHING RETURNING outcome_id
"""
_COUNT = """
INSERT INTO ingest_count AS c (model_id, partition, predictions, outcomes, orphans, duplicates)
    VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (model_id, partition) DO UPDATE SET predictions = c.predictions + $3, outcomes = c.outcomes + $4,
    orphans = c.orphans + $5, duplicates = c.duplicates + $6
"""
_ARCHIVE = "INSERT INTO archive_queue (model_id, rows, kept, payload) VALUES ($1, $2, $3, $4)"


@dataclass
class _Tally:
    predictions: int = 0
    outcomes: int = 0
    orphans: int = 0
    duplicates: int = 0


class IngestRows:
    """`Ingestion` on the transaction's connection."""

    _conn: Connection
    _versions: VersionCache
    _pane_us: int

    async def add_predictions(self, partition: int, batches: Sequence[PredictionColumns]) -> None:
        """Store the new predictions, count them and the labels that arrived before them, and queue them
        for the archive."""
        conn = self._conn
        variants = [await self._versions.variant(b.key) for b in batches]
        kept = await self._insert(partition, batches, variants)
        orphans_exist = await conn.fetchval(_ORPHANS, partition) > 0
        work = _Panes(self._pane_us)
        tallies: dict[int, _Tally] = {}
        arrived: dict[int, list[int]] = {}
        # Only these can have a label already: while orphans exist, or as the shadow of a labelled prediction.
        candidates = [
            (version.model_id, i)
            for batch, (_, version), new in zip(batches, variants, kept, strict=True)
            if orphans_exist or batch.shadow
            for i in _selected(batch.ids, new)
        ]
        labels: dict[int, dict[str, float]] = {}
        if candidates:
            for row in await conn.fetch(_LABELS, [m for m, _ in candidates], [i for _, i in candidates]):
                labels.setdefault(row["model_id"], {})[row["prediction_id"]] = row["value"]
        for batch, (_, version), new in zip(batches, variants, kept, strict=True):
            tally = tallies.setdefault(version.model_id, _Tally())
            count = int(new.sum())
            tally.duplicates += len(new) - count
            if count == 0:
                continue
            rows = rows_of(batch, new)
            if not batch.shadow:
                tally.predictions += count
                arrived.setdefault(version.model_id, []).extend(rows.event_times[-RECENT:].tolist())
            work.of(version).add_rows(rows)
            if version.model_id in labels:
                tally.orphans -= _count_early_labels(
                    work.of(version), rows, _selected(batch.ids, new), labels[version.model_id]
                )
            await conn.execute(_ARCHIVE, version.model_id, count, pack_kept(new), batch.payload)
        await work.write(conn, partition)
        await self._count(partition, tallies)
        await advance(conn, partition, arrived, labels=False)

    async def add_outcomes(self, partition: int, batches: Sequence[OutcomeColumns]) -> None:
        """Store outcomes. Labels are counted in the panes of their predictions, or wait for these."""
        conn = self._conn
        work = _Panes(self._pane_us)
        tallies: dict[int, _Tally] = {}
        arrived: dict[int, list[int]] = {}
        for batch in batches:
            if not batch.prediction_ids:
                continue
            model_id = await self._versions.model_id(batch.model)
            tally = tallies.setdefault(model_id, _Tally())
            times = arrived.setdefault(model_id, [])
            if batch.name == LABEL:
                times += await self._labels(partition, model_id, batch, tally, work)
                continue
            columns = (
                batch.outcome_ids,
                batch.prediction_ids,
                batch.values.tolist(),
                batch.event_times.tolist(),
            )
            new = {r[0] for r in await conn.fetch(_ADD_OUTCOMES, *columns, model_id, batch.name)}
            tally.outcomes += len(new)
            tally.duplicates += len(batch.outcome_ids) - len(new)
            by_id = dict(zip(batch.outcome_ids, batch.event_times.tolist(), strict=True))
            times += [time for outcome, time in by_id.items() if outcome in new]
        await work.write(conn, partition)
        await self._count(partition, tallies)
        await advance(conn, partition, arrived, labels=True)

    async def _insert(
        self,
        partition: int,
        batches: Sequence[PredictionColumns],
        variants: Sequence[tuple[int, WatchedVersion]],
    ) -> list[Mask]:
        """Insert the rows; a mask of the new ones per batch. Of two equal rows the first is new."""
        columns: list[list[object]] = [[] for _ in range(11)]
        shadows = [v if b.shadow else 0 for b, (v, _) in zip(batches, variants, strict=True)]
        for batch, (variant_id, version), shadow in zip(batches, variants, shadows, strict=True):
            n = len(batch.ids)
            for column, part in zip(
                columns,
                (
                    [version.model_id] * n,
                    batch.ids,
                    [shadow] * n,
                    [variant_id] * n,
                    batch.event_times.tolist(),
                    batch.scores.tolist(),
                    batch.decisions.tolist(),
                    batch.failed.tolist(),
                    batch.sources.tolist(),
                    batch.latencies_ms.tolist(),
                    batch.segments,
                ),
                strict=True,
            ):
                column.extend(part)
        inserted = await self._conn.fetch(_INSERT, *columns, partition)
        if len(inserted) == len(columns[0]):
            return [np.ones(len(b.ids), np.bool_) for b in batches]
        fresh = {(r[0], r[1], r[2]) for r in inserted}
        kept = []
        for batch, (_, version), shadow in zip(batches, variants, shadows, strict=True):
            new = np.zeros(len(batch.ids), np.bool_)
            for i, prediction_id in enumerate(batch.ids):
                key = version.model_id, prediction_id, shadow
                if key in fresh:
                    fresh.remove(key)
                    new[i] = True
            kept.append(new)
        return kept

    async def _labels(
        self, partition: int, model_id: int, batch: OutcomeColumns, tally: _Tally, work: _Panes
    ) -> list[int]:
        """Store the labels of a batch, and count the new and corrected ones in the panes of their
        predictions. Returns the event times of these labels, in order of arrival."""
        conn = self._conn
        latest: dict[str, Label] = {}
        rows = zip(
            batch.prediction_ids,
            batch.values.tolist(),
            batch.event_times.tolist(),
            batch.outcome_ids,
            strict=True,
        )
        for prediction_id, value, time, outcome_id in rows:
            label = Label(time, outcome_id, value)
            other = latest.get(prediction_id)
            if other is None or label.replaces(other):
                latest[prediction_id] = label
        ids = list(latest)
        inserted = await conn.fetch(_ADD_LABELS, ids, *_fields(latest, ids), partition, model_id)
        added = {r[0] for r in inserted}
        tally.outcomes += len(added)
        tally.duplicates += len(batch.prediction_ids) - len(added)
        known = [i for i in ids if i not in added]
        corrected: dict[str, Label] = {}
        if known:
            found = await conn.fetch(_LABELS, [model_id] * len(known), known)
            stored = {r["prediction_id"]: Label(r["event_time"], r["outcome_id"], r["value"]) for r in found}
            corrected = {i: stored[i] for i in known if latest[i].replaces(stored[i])}
            if corrected:
                fields = _fields(latest, list(corrected))
                await conn.execute(_CORRECT_LABELS, list(corrected), *fields, model_id)
        found = await conn.fetch(_LABELLED_ROWS, model_id, [*added, *corrected])
        served = {r["prediction_id"] for r in found if not r["shadow_variant"]}
        tally.orphans += len(added) - len(served & added)
        groups: dict[tuple[int, bool], list[tuple[object, ...]]] = {}
        usable = usable_scores(
            np.array([r["score"] for r in found], np.float64),
            np.array([r["source"] for r in found], np.int64),
        )
        for r in compress(found, usable.tolist()):
            group = groups.setdefault((r["variant_id"], r["shadow_variant"] != 0), [])
            group.append((r["event_time"], r["segment"], r["score"], latest[r["prediction_id"]].value, 1))
            old = corrected.get(r["prediction_id"])
            if old is not None:
                group.append((r["event_time"], r["segment"], r["score"], old.value, -1))
        for (variant_id, shadow), entries in groups.items():
            version = await self._versions.of_variant(variant_id)
            times, segments, scores, values, weights = zip(*entries, strict=True)
            work.of(version).add_labels(
                np.array(times, np.int64),
                tuple(str(s) for s in segments),
                shadow,
                np.array(scores, np.float64),
                np.array(values, np.float64),
                np.array(weights, np.int64),
            )
        return [label.event_time for i, label in latest.items() if i in added or i in corrected]

    async def _count(self, partition: int, tallies: dict[int, _Tally]) -> None:
        for model_id, t in sorted(tallies.items()):
            await self._conn.execute(
                _COUNT, model_id, partition, t.predictions, t.outcomes, t.orphans, t.duplicates
            )


class _Panes:
    """The pane accumulators of one transaction, by version."""

    def __init__(self, pane_us: int) -> None:
        self._pane_us = pane_us
        self._found: dict[int, tuple[WatchedVersion, PaneAccumulator]] = {}

    def of(self, version: WatchedVersion) -> PaneAccumulator:
        if version.id not in self._found:
            self._found[version.id] = (version, PaneAccumulator(version.layout, self._pane_us))
        return self._found[version.id][1]

    async def write(self, conn: Connection, partition: int) -> None:
        for version_id, (_, added) in sorted(self._found.items()):
            if added:
                await merge_panes(conn, version_id, partition, added)


def _fields(labels: dict[str, Label], ids: Sequence[str]) -> tuple[list[float], list[int], list[str]]:
    chosen = [labels[i] for i in ids]
    return [c.value for c in chosen], [c.event_time for c in chosen], [c.outcome_id for c in chosen]


def _selected(ids: Sequence[str], keep: Mask) -> list[str]:
    return list(ids) if bool(keep.all()) else [i for i, k in zip(ids, keep.tolist(), strict=True) if k]


def _count_early_labels(
    panes: PaneAccumulator, rows: Rows, ids: Sequence[str], labels: dict[str, float]
) -> int:
    """Count labels that arrived before their predictions; returns how many are orphans no longer (none for
    shadow rows)."""
    has = np.array([i in labels for i in ids], np.bool_)
    if not has.any():
        return 0
    at: Mask = has & usable_scores(rows.scores, rows.sources)
    values: Floats = np.array([labels.get(i, 0.0) for i in ids], np.float64)
    weights: Ints = np.ones(int(at.sum()), np.int64)
    segments = tuple(s for s, k in zip(rows.segments, at.tolist(), strict=True) if k)
    panes.add_labels(rows.event_times[at], segments, rows.shadow, rows.scores[at], values[at], weights)
    return 0 if rows.shadow else int(has.sum())
