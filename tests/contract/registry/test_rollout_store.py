"""Contract tests for rollouts, routing and serving history, in memory and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from flywheel_common.postgres.transactions import Store
from flywheel_registry.models.variant import Variant
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts.decision import Decision
from flywheel_registry.rollouts.errors import ConcurrentRolloutStart
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.rollouts.rollout import Rollout, RolloutStep
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.serving.history import ServingSpan
from flywheel_registry.serving.routing import Routing
from tests.support.builders.registry import CREATED_AT, MODEL, OTHER_MODEL, add_model, in_transaction

ROLLOUT = Rollout(
    MODEL,
    challenger=1,
    challenger_version=1,
    policy=RolloutPolicy(canary_percents=(10.0, 100.0), min_bake_seconds=60.0),
    reason="started",
    history=(RolloutStep("SHADOW", 0.0, CREATED_AT, "started"),),
    created_at=CREATED_AT,
    created_by="ann",
)


async def test_a_model_has_one_active_rollout_and_keeps_its_history(observed: Any) -> None:
    store = observed.store
    await add_model(store)
    async with store.transaction() as records:
        assert await records.active_rollout(MODEL) is None
        assert replace(ROLLOUT, number=1) == await records.add_rollout(ROLLOUT)
    with pytest.raises(ConcurrentRolloutStart):
        await in_transaction(store, lambda r: r.add_rollout(ROLLOUT))
    step = RolloutStep("CANARY", 10.0, CREATED_AT + timedelta(hours=1), "shadow passed", 4)
    moved = replace(
        ROLLOUT,
        number=1,
        progress=Progress(RolloutState.CANARY, 10.0, 1),
        step_started_at=CREATED_AT,
        reason="shadow passed",
        last_decision=Decision.ADVANCE,
    )

    async def change(records: RolloutRecords) -> None:
        await records.change_rollout(moved, step)
        await records.emit(moved.changed("shadow passed"), CREATED_AT)

    await in_transaction(store, change)
    expected = replace(moved, history=(*ROLLOUT.history, step))
    async with store.reading() as records:
        assert expected == await records.rollout(MODEL, 1) == await records.active_rollout(MODEL)
        assert [expected] == await records.undecided_rollouts()
    assert [("RolloutChanged", "shadow passed")] == await observed.emitted()
    ended = replace(moved, progress=Progress(RolloutState.ABORTED, 0.0, 2), ended_at=CREATED_AT)
    last = RolloutStep("ABORTED", 0.0, CREATED_AT, "enough")
    await in_transaction(store, lambda r: r.change_rollout(ended, last))
    await in_transaction(store, lambda r: r.add_rollout(ROLLOUT))
    async with store.reading() as records:
        assert [2, 1] == [r.number for r in await records.rollouts(MODEL, 99, 9)]
        assert [1] == [r.number for r in await records.rollouts(MODEL, 2, 9)]
        active = await records.active_rollout(MODEL)
        assert active is not None and 2 == active.number


async def test_a_hold_is_stored_only_for_the_current_step(store: Store[RolloutRecords]) -> None:
    await add_model(store)
    rollout = await in_transaction(store, lambda r: r.add_rollout(ROLLOUT))
    waiting = replace(
        rollout,
        reason="too few labels",
        step_started_at=CREATED_AT,
        evidence_count=2**40,
        evidence_grew_at=CREATED_AT + timedelta(hours=1),
    )
    await in_transaction(store, lambda r: r.note_hold(waiting, Progress(step=1)))
    async with store.reading() as records:
        assert rollout == await records.rollout(MODEL, 1)
    await in_transaction(store, lambda r: r.note_hold(waiting, rollout.progress))
    async with store.reading() as records:
        assert replace(waiting, last_decision=Decision.HOLD) == await records.rollout(MODEL, 1)
    await in_transaction(store, lambda r: r.note_alert(replace(rollout, alerted_at=CREATED_AT)))
    await in_transaction(store, lambda r: r.note_hold(waiting, rollout.progress))
    moved = replace(rollout, progress=Progress(RolloutState.CANARY, 10.0, 1), reason="passed")
    step = RolloutStep("CANARY", 10.0, CREATED_AT, "passed")
    async with store.reading() as records:
        assert [None] == [r.alerted_at for r in await records.undecided_rollouts()]
    await in_transaction(store, lambda r: r.change_rollout(moved, step))
    async with store.reading() as records:
        (found,) = await records.undecided_rollouts()
    assert (0, None) == (found.evidence_count, found.evidence_grew_at)


async def test_a_paused_rollout_is_active_but_not_undecided(store: Store[RolloutRecords]) -> None:
    await add_model(store)
    rollout = await in_transaction(store, lambda r: r.add_rollout(ROLLOUT))
    paused = replace(rollout, progress=Progress(RolloutState.PAUSED, 0.0, 1, RolloutState.SHADOW))
    await in_transaction(
        store, lambda r: r.change_rollout(paused, RolloutStep("PAUSED", 0.0, CREATED_AT, "why"))
    )
    async with store.reading() as records:
        assert [] == await records.undecided_rollouts()
        active = await records.active_rollout(MODEL)
        assert [] == await records.paused_rollouts(CREATED_AT - timedelta(seconds=1))
        assert [active] == await records.paused_rollouts(CREATED_AT)
    assert active is not None and paused.progress == active.progress
    reported = replace(active, alerted_at=CREATED_AT + timedelta(days=1))
    await in_transaction(store, lambda r: r.note_alert(reported))
    async with store.reading() as records:
        assert [reported] == await records.paused_rollouts(CREATED_AT)
    resumed = replace(paused, progress=Progress(RolloutState.SHADOW, 0.0, 2))
    await in_transaction(
        store, lambda r: r.change_rollout(resumed, RolloutStep("SHADOW", 0.0, CREATED_AT, "go on"))
    )
    async with store.reading() as records:
        assert [] == await records.paused_rollouts(CREATED_AT)
        assert [None] == [r.alerted_at for r in await records.undecided_rollouts()]


async def test_routing_is_the_one_set_last(store: Store[RolloutRecords]) -> None:
    await add_model(store)
    async with store.reading() as records:
        assert Routing() == await records.routing(MODEL)
    variants = (Variant("hold", 1, 5.0), Variant("copy", 1, shadow_percent=50.0))
    for routing in (Routing(1, champion=1), Routing(2, 1, 1, 1, 100.0, 12.5, variants)):
        await in_transaction(store, lambda r, routing=routing: r.set_routing(MODEL, routing))
        async with store.reading() as records:
            assert routing == await records.routing(MODEL)


async def test_a_new_span_ends_the_open_one(store: Store[RolloutRecords]) -> None:
    await add_model(store, versions=2)
    spans = [
        ServingSpan(1 + i % 2, 1 + i % 2, CREATED_AT + timedelta(hours=i), None, f"reason {i}", i == 2)
        for i in range(3)
    ]
    for span in spans:
        await in_transaction(store, lambda r, span=span: r.begin_span(MODEL, span))
    ended = [replace(s, until=n.since) for s, n in pairwise(spans)] + [spans[-1]]
    async with store.reading() as records:
        assert ended == await records.spans(MODEL)
        assert [(3, ended[2]), (2, ended[1])] == await records.page_of_spans(MODEL, 99, 2)
        assert [(1, ended[0])] == await records.page_of_spans(MODEL, 2, 2)
        assert [] == await records.spans(OTHER_MODEL)
