"""Ingestion into PostgreSQL: each prediction and outcome counts once, in the transaction that moves the
consumer's position.

One consumer at a time works on a partition, and both topics are partitioned by prediction id, so that a
prediction and its label never race. Rows are written in bulk; only rows that were new are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from operator import itemgetter

import numpy as np

from flywheel_common.arrays import Ints, Mask
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.ingest.answers import Answer, Known, Pair, answers_of, labelled_rows, paired_rows
from flywheel_monitor.ingest.batches import (
    LABEL,
    OutcomeColumns,
    PredictionColumns,
    Role,
    VariantKey,
    merged,
    rows_of,
)
from flywheel_monitor.ingest.labels import Label
from flywheel_monitor.store.postgres.archive_queue import queue_batches
from flywheel_monitor.store.postgres.experiment_events import (
    note_batches,
    note_outcomes,
    tested_models,
)
from flywheel_monitor.store.postgres.home import Home, home_of
from flywheel_monitor.store.postgres.late import add_late
from flywheel_monitor.store.postgres.new_predictions import add_new
from flywheel_monitor.store.postgres.packs import slice_us
from flywheel_monitor.store.postgres.panes import merge_panes
from flywheel_monitor.store.postgres.parking import lock_ids, park
from flywheel_monitor.store.postgres.progress import advance
from flywheel_monitor.store.postgres.stored_predictions import find, labels_of, pairs_of
from flywheel_monitor.store.postgres.variants import Variant
from flywheel_monitor.store.postgres.versions import VersionCache, output_from_json
from flywheel_monitor.windows.output import Output
from flywheel_monitor.windows.panes import PaneAccumulator
from flywheel_monitor.windows.pieces import rollup_widths
from flywheel_monitor.windows.support import RECENT

_LABELS = """
SELECT model_id, prediction_id, value, event_time, outcome_id, class_name FROM label
WHERE (model_id, prediction_id) IN (SELECT * FROM unnest($1::integer[], $2::text[]))
"""
_OUTPUTS = """
SELECT v.name, v.output FROM model_version v JOIN model m ON m.id = v.model_id WHERE m.name = $1
UNION ALL
(SELECT DISTINCT ON (model_version) model_version, output FROM waiting_batch WHERE model = $1
    ORDER BY model_version, id)
"""
_ORPHANS = "SELECT coalesce(sum(orphans), 0) FROM ingest_count"
_ADD_LABELS = """
INSERT INTO label (prediction_id, value, event_time, outcome_id, class_name, partition, model_id)
SELECT *, $6, $7 FROM unnest($1::text[], $2::float8[], $3::bigint[], $4::text[], $5::text[])
ON CONFLICT DO NOTHING RETURNING prediction_id
"""
_CORRECT_LABELS = """
UPDATE label l SET value = n.value, event_time = n.event_time, outcome_id = n.outcome_id,
    class_name = n.class_name
FROM unnest($1::text[], $2::float8[], $3::bigint[], $4::text[], $5::text[])
    AS n (prediction_id, value, event_time, outcome_id, class_name)
WHERE l.model_id = $6 AND l.prediction_id = n.prediction_id
"""
_ADD_OUTCOMES = """
INSERT INTO outcome (outcome_id, prediction_id, value, event_time, model_id, name)
SELECT *, $5, $6 FROM unnest($1::text[], $2::text[], $3::float8[], $4::bigint[])
    ON CONFLICT DO NOTHING RETURNING outcome_id
"""
_COUNT = """
INSERT INTO ingest_count AS c (partition, model_id, predictions, outcomes, orphans, duplicates, late)
SELECT $1, * FROM unnest($2::integer[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
ON CONFLICT (model_id, partition) DO UPDATE SET predictions = c.predictions + excluded.predictions,
    outcomes = c.outcomes + excluded.outcomes, orphans = c.orphans + excluded.orphans,
    duplicates = c.duplicates + excluded.duplicates, late = c.late + excluded.late
"""
# Models that have a named variant as shadow, of which any champion's answer may be a pair.
_NAMED_SHADOWS = """
SELECT DISTINCT v.model_id FROM variant t JOIN model_version v ON v.id = t.model_version_id
WHERE v.model_id = ANY($1::integer[]) AND t.role = 3 AND t.rollout LIKE '%/variants/%'
"""


class _Arrived:
    """The times of the last served predictions of each model, in order of arrival."""

    def __init__(self) -> None:
        self._last: dict[int, list[tuple[int, int]]] = {}

    def add(self, model_id: int, batch: PredictionColumns, new: Mask) -> None:
        rows = np.flatnonzero(new)
        last = rows[np.argsort(batch.arrivals[rows], kind="stable")[-RECENT:]]
        found = self._last.setdefault(model_id, [])
        found += zip(batch.arrivals[last].tolist(), batch.event_times[last].tolist(), strict=True)

    def last(self) -> dict[int, list[int]]:
        """model id → times."""
        ordered = {m: sorted(found, key=itemgetter(0)) for m, found in self._last.items()}
        return {m: [time for _, time in found[-RECENT:]] for m, found in ordered.items()}


@dataclass
class _Tally:
    predictions: int = 0
    outcomes: int = 0
    orphans: int = 0
    duplicates: int = 0
    late: int = 0


class IngestRows:
    """`Ingestion` on the transaction's connection."""

    _conn: Connection
    _versions: VersionCache
    _pane_us: int
    _partitions: int

    async def outputs(self, model: str) -> dict[str, Output]:
        return {r["name"]: output_from_json(r["output"]) for r in await self._conn.fetch(_OUTPUTS, model)}

    async def knows_model(self, model: str) -> bool:
        return await self._versions.knows_model(model)

    def known_output(self, model_version: str) -> Output | None:
        return self._versions.known_output(model_version)

    async def add_predictions(self, partition: int, batches: Sequence[PredictionColumns]) -> None:
        """Store the new predictions, count them and the labels that arrived before them, and queue them
        for the archive."""
        conn = self._conn
        home = home_of([i for b in batches for i in b.ids], partition, self._partitions)
        await lock_ids(conn, home)
        batches, variants = await self._grouped(partition, batches)
        if not batches:
            return
        kept = await add_new(conn, home, batches, variants, slice_us(self._pane_us))
        orphans_exist = await conn.fetchval(_ORPHANS) > 0
        work = _Panes(self._pane_us)
        tallies: dict[int, _Tally] = {}
        arrived = _Arrived()
        times: dict[int, list[Ints]] = {}
        archived: list[tuple[int, PredictionColumns, Mask]] = []
        # Only these can have a label already: while orphans exist, or as the shadow of a labelled prediction.
        candidates = [
            (variant.version.model_id, i)
            for batch, variant, new in zip(batches, variants, kept, strict=True)
            if orphans_exist or batch.shadow
            for i in compress(batch.ids, new.tolist())
        ]
        labels: dict[tuple[int, str], Known] = {}
        if candidates:
            for row in await conn.fetch(_LABELS, [m for m, _ in candidates], [i for _, i in candidates]):
                found = Known(row["value"], row["class_name"], event_time=row["event_time"])
                labels[row["model_id"], row["prediction_id"]] = found
        for batch, variant, new in zip(batches, variants, kept, strict=True):
            model_id, panes = variant.version.model_id, work.of(variant)
            tally = tallies.setdefault(model_id, _Tally())
            count = int(new.sum())
            tally.duplicates += len(new) - count
            if count == 0:
                continue
            rows = rows_of(batch, new)
            if not batch.shadow:
                tally.predictions += count
                arrived.add(model_id, batch, new)
                times.setdefault(variant.version.id, []).append(rows.event_times)
            panes.add_rows(rows)
            if labels:
                answers = zip(compress(batch.ids, new.tolist()), answers_of(rows), strict=True)
                early = [(a, labels[model_id, i]) for i, a in answers if (model_id, i) in labels]
                panes.add_labels(labelled_rows(variant.version.output, early))
                tally.orphans -= 0 if batch.shadow else len(early)
            archived.append((model_id, batch, new))
        await queue_batches(conn, archived)
        await self._count_pairs(home, batches, variants, kept, work)
        await note_batches(conn, home, batches, variants, kept, labels)
        await work.write(conn, partition)
        models = {v.version.id: v.version.model_id for v in variants}
        joined = {version_id: np.concatenate(parts) for version_id, parts in times.items()}
        for version_id, count in (await add_late(conn, partition, joined, self._pane_us)).items():
            tallies[models[version_id]].late += count
        await self._count(partition, tallies)
        await advance(conn, partition, arrived.last(), labels=False)

    async def _grouped(
        self, partition: int, batches: Sequence[PredictionColumns]
    ) -> tuple[list[PredictionColumns], list[Variant]]:
        """The batches, merged, whose variants are known; the others wait."""
        known: dict[VariantKey, Variant | None] = {}
        for batch in batches:
            if batch.key not in known:
                known[batch.key] = await self._versions.known_variant(batch.first_record())
            if known[batch.key] is None:
                await park(self._conn, partition, batch)
        found, variants = [], []
        for batch in merged([b for b in batches if known[b.key] is not None]):
            variant = known[batch.key]
            assert variant is not None
            found.append(batch)
            variants.append(variant)
        return found, variants

    async def _count_pairs(
        self,
        home: Home,
        batches: Sequence[PredictionColumns],
        variants: Sequence[Variant],
        kept: Sequence[Mask],
        work: _Panes,
    ) -> None:
        """Count requests that both the champion and a shadow of a rollout have answered with these rows."""
        new: dict[int, dict[str, set[int]]] = {}
        models = sorted({v.version.model_id for v in variants})
        shadowed = {r["model_id"] for r in await self._conn.fetch(_NAMED_SHADOWS, models)}
        for batch, variant, mask in zip(batches, variants, kept, strict=True):
            has_shadow = bool(batch.key.rollout) or variant.version.model_id in shadowed
            if has_shadow and batch.key.role in (Role.CHAMPION, Role.SHADOW):
                found = new.setdefault(variant.version.model_id, {})
                for i in compress(batch.ids, mask.tolist()):
                    found.setdefault(i, set()).add(variant.id if batch.shadow else 0)
        for model_id, rows in new.items():
            await self._pairs_of(home, model_id, rows, work)

    async def _pairs_of(self, home: Home, model_id: int, new: dict[str, set[int]], work: _Panes) -> None:
        answers = await find(self._conn, home, model_id, new)
        shadowed = sorted({s.id for s in answers if s.shadow})
        labels = await labels_of(self._conn, model_id, shadowed) if shadowed else {}
        groups: dict[int, tuple[Variant, list[Pair]]] = {}
        for variant, shadow, pair in await pairs_of(self._versions, answers, labels):
            if new[shadow.id] & {0, variant.id}:
                groups.setdefault(variant.id, (variant, []))[1].append(pair)
        for variant, pairs in groups.values():
            work.of(variant).add_pairs(paired_rows(variant.version.output, pairs))

    async def add_outcomes(self, partition: int, batches: Sequence[OutcomeColumns]) -> None:
        """Store outcomes. Labels are counted in the panes of their predictions, or wait for these."""
        conn = self._conn
        home = home_of([i for b in batches for i in b.prediction_ids], partition, self._partitions)
        await lock_ids(conn, home)
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
                times += await self._labels(home, model_id, batch, tally, work)
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
            if await tested_models(conn, [model_id]):
                named = list(zip(*columns[:3], strict=True))[::-1]  # Of equal ids the first one is stored.
                fresh = {outcome: (i, batch.name, value) for outcome, i, value in named if outcome in new}
                await note_outcomes(conn, home, model_id, fresh.values())
            by_id = dict(zip(batch.outcome_ids, batch.event_times.tolist(), strict=True))
            times += [time for outcome, time in by_id.items() if outcome in new]
        await work.write(conn, partition)
        await self._count(partition, tallies)
        await advance(conn, partition, arrived, labels=True)

    async def _labels(
        self, home: Home, model_id: int, batch: OutcomeColumns, tally: _Tally, work: _Panes
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
            batch.class_names,
            strict=True,
        )
        for prediction_id, value, time, outcome_id, class_name in rows:
            label = Label(time, outcome_id, value, class_name)
            other = latest.get(prediction_id)
            if other is None or label.replaces(other):
                latest[prediction_id] = label
        ids = list(latest)
        inserted = await conn.fetch(_ADD_LABELS, ids, *_fields(latest, ids), home.partition, model_id)
        added = {r[0] for r in inserted}
        tally.outcomes += len(added)
        tally.duplicates += len(batch.prediction_ids) - len(added)
        known = [i for i in ids if i not in added]
        corrected: dict[str, Label] = {}
        if known:
            found = await conn.fetch(_LABELS, [model_id] * len(known), known)
            stored = {
                r["prediction_id"]: Label(r["event_time"], r["outcome_id"], r["value"], r["class_name"])
                for r in found
            }
            corrected = {i: stored[i] for i in known if latest[i].replaces(stored[i])}
            if corrected:
                fields = _fields(latest, list(corrected))
                await conn.execute(_CORRECT_LABELS, list(corrected), *fields, model_id)
        if await tested_models(conn, [model_id]):
            differences = [
                (i, LABEL, latest[i].value - (corrected[i].value if i in corrected else 0.0))
                for i in (*added, *corrected)
            ]
            await note_outcomes(conn, home, model_id, differences)
        found = await find(conn, home, model_id, [*added, *corrected])
        served = {s.id for s in found if not s.shadow}
        tally.orphans += len(added) - len(served & added)
        answers: dict[int, dict[str, Answer]] = {}
        for s in found:
            answers.setdefault(s.variant_id, {})[s.id] = s.answer
        changes = {i: [_known(latest[i])] for i in (*added, *corrected)}
        for i, old in corrected.items():
            changes[i].append(replace(_known(old), weight=-1))
        variants = {v: await self._versions.of_variant(v) for v in answers}
        for variant_id, mine in answers.items():
            variant = variants[variant_id]
            output, panes = variant.version.output, work.of(variant)
            panes.add_labels(labelled_rows(output, [(a, k) for i, a in mine.items() for k in changes[i]]))
            if variant.key.role != Role.SHADOW or not variant.key.rollout:
                continue
            for champion_id, theirs in answers.items():
                if variant.is_shadow_of(variants[champion_id]):
                    both = mine.keys() & theirs.keys()
                    pairs = [Pair(theirs[i], mine[i], k) for i in both for k in changes[i]]
                    panes.add_pairs(paired_rows(output, pairs, labels_only=True))
        return [label.event_time for i, label in latest.items() if i in added or i in corrected]

    async def _count(self, partition: int, tallies: dict[int, _Tally]) -> None:
        rows = [
            (model_id, t.predictions, t.outcomes, t.orphans, t.duplicates, t.late)
            for model_id, t in sorted(tallies.items())
        ]
        if rows:
            await self._conn.execute(_COUNT, partition, *map(list, zip(*rows, strict=True)))


class _Panes:
    """The pane accumulators of one transaction, by variant."""

    def __init__(self, pane_us: int) -> None:
        self._pane_us = pane_us
        self._found: dict[int, PaneAccumulator] = {}

    def of(self, variant: Variant) -> PaneAccumulator:
        if variant.id not in self._found:
            self._found[variant.id] = PaneAccumulator(
                variant.version.layout, self._pane_us, rollup_widths(self._pane_us)
            )
        return self._found[variant.id]

    async def write(self, conn: Connection, partition: int) -> None:
        await merge_panes(conn, partition, {v: added for v, added in self._found.items() if added})


def _known(label: Label) -> Known:
    return Known(label.value, label.class_name, event_time=label.event_time)


def _fields(labels: dict[str, Label], ids: Sequence[str]) -> tuple[list[object], ...]:
    chosen = [labels[i] for i in ids]
    return (
        [c.value for c in chosen],
        [c.event_time for c in chosen],
        [c.outcome_id for c in chosen],
        [c.class_name for c in chosen],
    )
