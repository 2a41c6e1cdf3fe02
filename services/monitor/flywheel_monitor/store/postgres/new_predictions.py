"""Storing of predictions in PostgreSQL, each once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from flywheel_common.arrays import Mask
from flywheel_common.postgres.pool import Connection
from flywheel_monitor.ingest.batches import PredictionColumns
from flywheel_monitor.store.postgres.home import Home
from flywheel_monitor.store.postgres.id_buckets import buckets_of
from flywheel_monitor.store.postgres.packs import packs_of
from flywheel_monitor.store.postgres.stored_predictions import add_packs, stored_ids
from flywheel_monitor.store.postgres.variants import Variant


async def add_new(
    conn: Connection,
    home: Home,
    batches: Sequence[PredictionColumns],
    variants: Sequence[Variant],
    slice_us: int,
) -> list[Mask]:
    """Store the rows; a mask of the new ones per batch. Of two equal rows the first to arrive is new."""
    kept = [np.ones(len(b.ids), np.bool_) for b in batches]
    buckets = [buckets_of(b.ids) for b in batches]
    groups: dict[tuple[int, int], list[int]] = {}
    models: dict[int, list[int]] = {}
    for k, (batch, variant) in enumerate(zip(batches, variants, strict=True)):
        groups.setdefault((variant.version.model_id, variant.id if batch.shadow else 0), []).append(k)
        models.setdefault(variant.version.model_id, []).append(k)
    wanted = {
        model_id: ([i for k in mine for i in batches[k].ids], np.concatenate([buckets[k] for k in mine]))
        for model_id, mine in models.items()
    }
    stored = await stored_ids(conn, home, wanted)
    for group, members in groups.items():
        rows = sum(len(batches[k].ids) for k in members)
        if group in stored or len({i for k in members for i in batches[k].ids}) < rows:
            _drop_repeats([batches[k] for k in members], [kept[k] for k in members], stored.get(group, ()))
    packs = (
        (variant.version.model_id, variant.id, batch.shadow, *pack)
        for batch, variant, new, known in zip(batches, variants, kept, buckets, strict=True)
        for pack in packs_of(batch, new, known, slice_us)
    )
    await add_packs(conn, home, packs)
    return kept


def _drop_repeats(
    batches: Sequence[PredictionColumns], kept: Sequence[Mask], stored: Collection[str]
) -> None:
    """Unset the rows whose ids are stored, or were in an earlier record of these batches."""
    rows = [(batch, mask, i) for batch, mask in zip(batches, kept, strict=True) for i in range(len(mask))]
    order = np.argsort(np.concatenate([b.arrivals for b in batches]), kind="stable")
    seen = set(stored)
    for batch, mask, i in (rows[k] for k in order.tolist()):
        mask[i] = batch.ids[i] not in seen
        seen.add(batch.ids[i])
