"""One law for rollouts, routing and serving history, in memory and in PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from flywheel_common.errors import Aborted
from flywheel_registry.policy import RolloutPolicy
from flywheel_registry.ports import Records, Store
from flywheel_registry.resources import Model, ModelVersion, Release, Rollout, RolloutChanged, RolloutStep
from flywheel_registry.rollout import Decision, Progress, RolloutState
from flywheel_registry.serving import Routing, Span

AT = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
LATE, OTHER = "projects/p/models/late", "projects/p/models/other"
ROLLOUT = Rollout(
    LATE,
    challenger=1,
    challenger_version=1,
    policy=RolloutPolicy(canary_percents=(10.0, 100.0), min_bake_seconds=60.0),
    reason="started",
    history=(RolloutStep("SHADOW", 0.0, AT, "started"),),
    created_at=AT,
    created_by="ann",
)


async def with_model(store: Store, name: str = LATE, versions: int = 1) -> None:
    """A model whose versions have a release each."""
    async with store.transaction() as records:
        assert await records.add_model(Model(name, created_at=AT))
        for _ in range(versions):
            version = await records.add_version(ModelVersion(name, registered_at=AT))
            await records.add_release(Release(name, version.number, created_at=AT, created_by="ann"))


async def in_transaction(store: Store, act: Callable[[Records], Awaitable[Any]]) -> Any:
    async with store.transaction() as records:
        return await act(records)


async def test_a_model_has_one_active_rollout_and_keeps_its_history(backed: Any) -> None:
    store = backed.store
    await with_model(store)
    async with store.transaction() as records:
        assert await records.active_rollout(LATE) is None
        assert replace(ROLLOUT, number=1) == await records.add_rollout(ROLLOUT)
    with pytest.raises(Aborted) as refused:
        await in_transaction(store, lambda r: r.add_rollout(ROLLOUT))
    assert "ROLLOUT_STARTED" == refused.value.reason
    step = RolloutStep("CANARY", 10.0, AT + timedelta(hours=1), "shadow passed", 4)
    moved = replace(
        ROLLOUT, number=1, progress=Progress(RolloutState.CANARY, 10.0, 1), step_started_at=AT, reason="shadow passed",
        last_decision=Decision.ADVANCE,
    )  # fmt: skip

    async def change(records: Records) -> None:
        await records.change_rollout(moved, step)
        await records.emit(RolloutChanged(moved, "shadow passed"), AT)

    await in_transaction(store, change)
    expected = replace(moved, history=(*ROLLOUT.history, step))
    async with store.reading() as records:
        assert expected == await records.rollout(LATE, 1) == await records.active_rollout(LATE)
        assert [expected] == await records.undecided_rollouts()
    assert [("RolloutChanged", "shadow passed")] == await backed.emitted()
    ended = replace(moved, progress=Progress(RolloutState.ABORTED, 0.0, 2), ended_at=AT)
    last = RolloutStep("ABORTED", 0.0, AT, "enough")
    await in_transaction(store, lambda r: r.change_rollout(ended, last))
    await in_transaction(store, lambda r: r.add_rollout(ROLLOUT))
    async with store.reading() as records:
        assert [2, 1] == [r.number for r in await records.rollouts(LATE, 99, 9)]
        assert [1] == [r.number for r in await records.rollouts(LATE, 2, 9)]
        active = await records.active_rollout(LATE)
        assert active is not None and 2 == active.number


async def test_a_hold_is_noted_only_where_the_rollout_still_is(store: Store) -> None:
    await with_model(store)
    rollout = await in_transaction(store, lambda r: r.add_rollout(ROLLOUT))
    waiting = replace(rollout, reason="too few labels", step_started_at=AT)
    await in_transaction(store, lambda r: r.note_hold(waiting, Progress(step=1)))
    async with store.reading() as records:
        assert rollout == await records.rollout(LATE, 1)
    await in_transaction(store, lambda r: r.note_hold(waiting, rollout.progress))
    async with store.reading() as records:
        assert replace(waiting, last_decision=Decision.HOLD) == await records.rollout(LATE, 1)


async def test_a_paused_rollout_is_active_and_no_tick_may_move_it(store: Store) -> None:
    await with_model(store)
    rollout = await in_transaction(store, lambda r: r.add_rollout(ROLLOUT))
    paused = replace(rollout, progress=Progress(RolloutState.PAUSED, 0.0, 1, RolloutState.SHADOW))
    await in_transaction(store, lambda r: r.change_rollout(paused, RolloutStep("PAUSED", 0.0, AT, "why")))
    async with store.reading() as records:
        assert [] == await records.undecided_rollouts()
        active = await records.active_rollout(LATE)
    assert active is not None and paused.progress == active.progress


async def test_routing_is_what_was_set_last(store: Store) -> None:
    await with_model(store)
    async with store.reading() as records:
        assert Routing() == await records.routing(LATE)
    for routing in (Routing(1, champion=1), Routing(2, 1, 1, 1, 100.0, 12.5)):
        await in_transaction(store, lambda r, routing=routing: r.set_routing(LATE, routing))
        async with store.reading() as records:
            assert routing == await records.routing(LATE)


async def test_a_new_span_ends_the_open_one(store: Store) -> None:
    await with_model(store, versions=2)
    spans = [
        Span(1 + i % 2, 1 + i % 2, AT + timedelta(hours=i), None, f"reason {i}", i == 2) for i in range(3)
    ]
    for span in spans:
        await in_transaction(store, lambda r, span=span: r.begin_span(LATE, span))
    ended = [replace(s, until=n.since) for s, n in pairwise(spans)] + [spans[-1]]
    async with store.reading() as records:
        assert ended == await records.spans(LATE)
        assert [(3, ended[2]), (2, ended[1])] == await records.page_of_spans(LATE, 99, 2)
        assert [(1, ended[0])] == await records.page_of_spans(LATE, 2, 2)
        assert [] == await records.spans(OTHER)
