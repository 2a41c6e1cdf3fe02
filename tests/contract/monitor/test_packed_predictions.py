"""Packed predictions: any stream is counted, found and deleted as the store in memory does it."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest

from flywheel_common.ids import uuid7
from flywheel_common.postgres.pool import create_pool
from flywheel_monitor.references.errors import NoPredictions
from tests.support.builders.monitor import (
    CHALLENGER,
    CHAMPION,
    HOUR_US,
    MINUTE_US,
    MODEL,
    SHADOW,
    START_US,
    outcomes,
    predictions,
    version_name,
)
from tests.support.servers.monitor import LocalMonitor, memory_monitor, postgres_monitor

ROLLOUT = f"{MODEL}/rollouts/1"
KINDS = ("texts", "times", "random", "hashed")
_ROWS = "SELECT coalesce(sum(rows), 0), count(*) FROM prediction_pack"


@pytest.fixture
async def both(database: str) -> AsyncIterator[list[LocalMonitor]]:
    async with AsyncExitStack() as stack:
        yield [memory_monitor(), await stack.enter_async_context(postgres_monitor(database))]


def new_id(kind: str, rng: random.Random, at: int) -> str:
    match kind:
        case "times":
            return uuid7(at // 1000, rng.getrandbits(74))
        case "random":
            return str(uuid.UUID(int=rng.getrandbits(128), version=4))
        case "hashed":
            return f"{rng.getrandbits(128):032x}-123"  # 36 characters, but no UUID
        case _:
            return f"ü{rng.randrange(10**6)}"


async def observed(monitor: LocalMonitor) -> list[Any]:
    """What users see of the predictions."""
    found: list[Any] = [await monitor.counts()]
    spans = [(None, None), (START_US + 7 * MINUTE_US, START_US + 50 * MINUTE_US)]
    for segment in ("", "de", "é"):
        for start, end in spans:
            try:
                p = await monitor.performance(start_us=start, end_us=end, segment=segment)
            except NoPredictions as error:  # Only shadow answers so far, or none.
                found.append(str(error))
                continue
            found.append((p.predictions, p.first_event_us, p.last_event_us, p.quality.labelled, p.error_rate))
            found.append(None if p.quality.auc is None else pytest.approx(p.quality.auc, abs=1e-12))
    for shadow in (True, False):
        for since in (None, START_US + 1, START_US + 37 * MINUTE_US + 12_345_678):
            evidence = await monitor.compare(shadow=shadow, since_us=since)
            c = evidence.comparison
            found.append((c.champion.predictions, c.challenger.predictions, c.labelled, c.right))
            found.append((c.disagreement_rate, evidence.covered, c.champion.error_rate))
    async with monitor.store.reading() as records:
        found.append(await records.champion(MODEL))
    return found


@pytest.mark.parametrize("kind", KINDS)
async def test_random_streams_are_kept_as_in_memory(both: list[LocalMonitor], kind: str) -> None:
    rng = random.Random(kind)
    ids: list[str] = []
    for step in range(25):
        n = rng.choice((1, 3, 40, 700))
        # One minute of each five: PostgreSQL merges each pane of a minute, role and segment alone.
        at = [START_US + 5 * MINUTE_US * rng.randrange(24) + rng.randrange(MINUTE_US) for _ in range(n)]
        if rng.random() < 0.5:
            at.sort()
        mine = [rng.choice(ids) if ids and rng.random() < 0.2 else new_id(kind, rng, t) for t in at]
        ids += mine
        role = rng.choice((CHAMPION, CHAMPION, SHADOW, CHALLENGER))
        batch = predictions(
            mine,
            [rng.random() for _ in at],
            times=at,
            role=role,
            version=1 if role == CHAMPION else 2,
            release=1 if role == CHAMPION else 2,
            rollout=ROLLOUT,
            segments=[rng.choice(("de", "fr", "é")) for _ in at] if rng.random() < 0.7 else (),
            sources=[rng.choice((1, 1, 2, 4)) for _ in at],
            costs=[rng.random() for _ in at] if rng.random() < 0.5 else (),
        )
        named = [*rng.sample(ids, min(len(ids), 60)), new_id(kind, rng, START_US)]
        labels = outcomes(
            named,
            [float(rng.random() < 0.4) for _ in named],
            times=[START_US + rng.randrange(10 * HOUR_US) for _ in named],
            outcome_ids=[f"{i}-{step}" for i in named],
        )
        for monitor in both:
            await monitor.predicted(batch)
            await monitor.labelled(labels)
        if step % 6 == 0:
            memory, postgres = [await observed(m) for m in both]
            assert memory == postgres
    memory, postgres = [await observed(m) for m in both]
    assert memory == postgres


@pytest.mark.parametrize("kind", KINDS)
async def test_pruned_packs_leave_no_trace(database: str, kind: str) -> None:
    rng = random.Random(kind)
    ids = [new_id(kind, rng, START_US + i * 1_000_000) for i in range(700)]
    times = [START_US + i * 1_000_000 for i in range(700)]
    async with postgres_monitor(database) as monitor, create_pool(database) as pool:
        await monitor.predicted(predictions(ids, times=times))
        await monitor.labelled(outcomes(ids, [1.0] * 700))
        assert (700, 12) == tuple(await pool.fetchrow(_ROWS) or ()), "one pack for each minute"
        async with monitor.store.transaction() as records:
            assert 700 == await records.prune(datetime.now(UTC))
        for table in ("prediction_pack", "prediction_bucket", "label"):
            assert 0 == await pool.fetchval(f"SELECT count(*) FROM {table}")
        await monitor.predicted(predictions(ids[:1], times=times[:1]))
        assert 701 == (await monitor.performance()).predictions, "what is deleted is not recognised"


async def test_labels_find_predictions_of_before_the_topic_grew(monitor: LocalMonitor) -> None:
    ids = [uuid7(START_US // 1000, i) for i in range(10)]
    await monitor.predicted(predictions(ids), partition=2)
    await monitor.labelled(outcomes(ids, [1.0] * 10), partition=8)
    found = await monitor.performance(version_name())
    assert (10, 0) == (found.quality.labelled, (await monitor.counts()).orphans)


async def test_what_is_rolled_back_is_new_when_it_comes_again(database: str) -> None:
    """Also while another partition goes on, and for ids of which a part was stored before."""
    ids = [uuid7(START_US // 1000, i) for i in range(6)] + ["p1", "p2"]
    async with postgres_monitor(database) as monitor, create_pool(database) as pool:
        await monitor.predicted(predictions(ids[:2]))
        with pytest.raises(RuntimeError, match="crash"):
            async with monitor.store.transaction() as records:
                await records.add_predictions(0, [predictions(ids)])
                await records.add_outcomes(0, [outcomes(ids, [1.0] * len(ids))])
                raise RuntimeError("crash")
        await monitor.predicted(predictions(["q1", "q2"]), partition=1)
        assert (4, 2) == tuple(await pool.fetchrow(_ROWS) or ())
        for _ in range(2):
            await monitor.predicted(predictions(ids))
            await monitor.labelled(outcomes(ids, [1.0] * len(ids)))
        found = await monitor.performance(version_name())
        assert (len(ids) + 2, len(ids)) == (found.predictions, found.quality.labelled)
        counts = await monitor.counts()
        assert (2 + 2 * len(ids), 0) == (counts.duplicates, counts.orphans), "of predictions, and of labels"
