"""The order in which releases are loaded, for example after a restart of Triton."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from flywheel_inference.serving.desired_state import DesiredModel
from flywheel_inference.serving.errors import ReleaseNotReady
from flywheel_inference.serving.state import ServingState
from tests.support.builders.inference import LOG_SPEC


def release(name: str) -> Any:
    return replace(LOG_SPEC, name=name)


def names(state: ServingState, at_once: int = 100) -> list[str]:
    return [tracked.spec.name for tracked in state.due_for_loading(1000.0, at_once)]


def asked(state: ServingState, name: str, when: float) -> None:
    scorer: Any = SimpleNamespace(ready=False, last_asked=when)
    state.releases[name, ""].scorer = scorer


def test_champions_with_traffic_come_first() -> None:
    state = ServingState()
    state.accept(
        [
            DesiredModel("quiet", 1, release("quiet/1"), warm=(release("quiet/0"),)),
            DesiredModel("busy", 1, release("busy/2"), release("busy/3"), challenger_percent=5.0),
            DesiredModel("older", 1, release("older/1")),
        ]
    )
    asked(state, "busy/2", 900.0)
    asked(state, "older/1", 100.0)
    order = names(state)
    assert order[:3] == ["busy/2", "older/1", "quiet/1"]
    assert sorted(order[3:]) == ["busy/3", "quiet/0"]


async def test_others_get_one_place_while_releases_with_recent_traffic_are_loaded() -> None:
    state = ServingState()
    state.accept([DesiredModel(str(n), 1, release(f"{n}/1")) for n in range(20)])
    for name, when in (("3/1", 990.0), ("7/1", 995.0), ("11/1", 930.0)):
        asked(state, name, when)
    first = state.due_for_loading(1000.0, 8)
    assert [tracked.spec.name for tracked in first] == ["7/1", "3/1", "11/1"]
    loading = asyncio.create_task(asyncio.sleep(60))
    for tracked in first:
        tracked.task = loading
    assert names(state, 8) == []
    first[2].task = None
    first[2].retry_at = 2000.0
    assert names(state, 8) == ["0/1"], "a release that fails does not hold the others up"
    for tracked in first:
        tracked.task, tracked.retry_at = None, 2000.0
    assert len(names(state, 8)) == 8
    loading.cancel()


async def test_at_most_some_releases_are_loaded_at_once() -> None:
    state = ServingState()
    state.accept([DesiredModel(str(n), 1, release(f"{n}/1")) for n in range(20)])
    first = state.due_for_loading(1000.0, 8)
    assert len(first) == 8
    loading = asyncio.create_task(asyncio.sleep(60))
    for tracked in first:
        tracked.task = loading
    assert names(state, 8) == []
    for tracked in first[:3]:
        tracked.task = None
        tracked.retry_at = 2000.0
    assert len(names(state, 8)) == 3
    loading.cancel()


def test_a_first_release_is_loaded_and_reported_before_it_serves() -> None:
    model = "projects/p/models/new"
    first = DesiredModel(model, 1, None, release("first"))
    state = ServingState()
    state.accept([first])
    state.settle()
    assert (True, ["first"]) == (state.settled, names(state))
    scorer: Any = SimpleNamespace(ready=True, last_asked=0.0, spec=release("first"))
    state.releases["first", ""].scorer = scorer
    state.model_server_up = True
    assert {model: 1} == state.apply()
    assert [(1, ("first",))] == [(seen.generation, seen.ready_releases) for seen in state.observed()]
    with pytest.raises(ReleaseNotReady):
        state.route(model)
    state.accept([replace(first, generation=2, champion=first.challenger, challenger=None)])
    assert {model: 2} == state.apply()
    assert "first" == state.route(model).champion.spec.name


def test_the_champion_is_not_dropped_with_its_old_warm_entry() -> None:
    state = ServingState()
    state.accept([DesiredModel("m", 1, LOG_SPEC, warm=(LOG_SPEC,), warm_since=(100.0,))])
    state.drop_warm(before=101.0)
    assert [tracked.spec for tracked in state.due_for_loading(1000.0, 8)] == [LOG_SPEC]
