"""Contract tests for stores of experiments and runs."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from flywheel_common.errors import InvalidArgument
from flywheel_common.postgres.errors import RequestIdReused
from flywheel_trainer.runs.errors import ExperimentExists, RunEnded, UnknownExperiment, UnknownRun
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.metric_points import LoggedPoints
from flywheel_trainer.runs.run import ExperimentName, Run, RunName, RunState, RunUpdate
from flywheel_trainer.runs.search import parse_filter, parse_order
from tests.support.builders.trainer import ARTIFACT, AT, EXPERIMENT, SECOND
from tests.support.builders.trainer import metric_point as point


@pytest.fixture
async def runs(stores: Any) -> Any:
    """A store with EXPERIMENT."""
    await stores.runs.create_experiment(EXPERIMENT, "", b"", AT)
    return stores.runs


async def create_run(runs: Any, run: str = "run-1", **fields: Any) -> Run:
    return await runs.create_run(Run(RunName("p", run), "late", **fields), "", b"", AT)


async def test_an_equal_experiment_is_returned_and_another_refused(runs: Any) -> None:
    stored = replace(EXPERIMENT, created_at=AT)
    assert stored == await runs.create_experiment(EXPERIMENT, "", b"", AT + SECOND)
    for other in (replace(EXPERIMENT, description="x"), replace(EXPERIMENT, tags={})):
        with pytest.raises(ExperimentExists):
            await runs.create_experiment(other, "r", b"x", AT)
    # The refused request did not use up its id.
    assert stored == await runs.create_experiment(EXPERIMENT, "r", b"y", AT)


async def test_experiments_are_listed_by_name_page_by_page(runs: Any) -> None:
    for name in ("c", "a", "b"):
        await runs.create_experiment(replace(EXPERIMENT, name=ExperimentName("q", name)), "", b"", AT)
    first = await runs.list_experiments("q", 2, "")
    assert ["a", "b"] == [e.name.experiment for e in first.items]
    second = await runs.list_experiments("q", 2, first.next_page_token)
    assert (["c"], "") == ([e.name.experiment for e in second.items], second.next_page_token)
    with pytest.raises(InvalidArgument):
        await runs.list_experiments("p", 2, first.next_page_token)


async def test_a_run_reads_back_in_its_project_and_needs_its_experiment(runs: Any) -> None:
    run = Run(
        RunName("p", "run-1"),
        "late",
        params={"lr": "0.1"},
        tags={"t": "ü"},
        artifacts=(ARTIFACT,),
        code_version="c0ffee",
        environment={"python": "3.11"},
        training_set="projects/p/trainingSets/t",
        job="j",
        lease_seconds=5.0,
    )
    assert replace(run, started_at=AT) == await runs.create_run(run, "", b"", AT)
    assert replace(run, started_at=AT) == await runs.get_run(run.name)
    assert await runs.get_run(RunName("q", "run-1")) is None
    with pytest.raises(UnknownExperiment):
        await runs.create_run(replace(run, name=RunName("p", "run-2"), experiment="none"), "", b"", AT)
    assert await runs.get_run(RunName("p", "run-2")) is None


async def test_a_hundred_equal_requests_create_one_run(runs: Any) -> None:
    def create(i: int, **fields: Any) -> Any:
        body = b"other" if fields else b"body"
        return runs.create_run(Run(RunName("p", f"run-a{i}"), "late", **fields), "once", body, AT)

    created = await asyncio.gather(*(create(i) for i in range(100)))
    assert [created[0]] * 100 == created
    with pytest.raises(RequestIdReused):
        await create(100, tags={"a": "other"})
    assert [created[0]] == list((await runs.list_runs("p", (), None, 999, "")).items)


async def test_the_first_value_of_a_step_is_kept(runs: Any) -> None:
    name = (await create_run(runs)).name
    first = [point("loss", 1, 0.5), point("loss", 3, 0.25), point("auc", 1, 0.75)]
    assert LoggedPoints(stored=3, ignored=0) == await runs.log(name, first, AT)
    assert LoggedPoints(stored=0, ignored=0) == await runs.log(name, first, AT)
    other = [point("loss", 3, 99.0), point("loss", 2, 0.125)]
    assert LoggedPoints(stored=1, ignored=1) == await runs.log(name, other, AT)
    assert LoggedPoints(stored=0, ignored=1) == await runs.log(name, other, AT)
    twice = [point("loss", 5, 0.0625), point("loss", 5, 7.0), point("loss", 5, math.nan)]
    assert LoggedPoints(stored=1, ignored=2) == await runs.log(name, twice, AT)
    assert LoggedPoints(stored=0, ignored=0) == await runs.log(name, [], AT)
    everything = [
        point("auc", 1, 0.75),
        point("loss", 1, 0.5),
        point("loss", 2, 0.125),
        point("loss", 3, 0.25),
        point("loss", 5, 0.0625),
    ]
    page = await runs.points(name, "", 3, "")
    rest = await runs.points(name, "", 3, page.next_page_token)
    assert everything == [*page.items, *rest.items]
    assert everything[1:] == list((await runs.points(name, "loss", 9, "")).items)
    with pytest.raises(UnknownRun):
        await runs.log(RunName("q", "run-1"), [point("loss", 1, 0.5)], AT)


async def test_a_repeated_nan_is_not_ignored(runs: Any) -> None:
    name = (await create_run(runs)).name
    nan = [point("loss", 1, math.nan), point("loss", 1, math.nan)]
    assert LoggedPoints(stored=1, ignored=0) == await runs.log(name, nan, AT)
    assert LoggedPoints(stored=0, ignored=0) == await runs.log(name, nan, AT)
    assert LoggedPoints(stored=0, ignored=1) == await runs.log(name, [point("loss", 1, 0.5)], AT)


async def test_the_value_of_the_last_step_is_the_metric_of_the_run(runs: Any) -> None:
    name = (await create_run(runs)).name
    await runs.log(name, [point("loss", 3, 0.25), point("auc", 1, 0.75)], AT)
    await runs.log(name, [point("loss", 2, 9.0)], AT)
    assert {"loss": 0.25, "auc": 0.75} == (await runs.get_run(name)).metrics


async def test_an_update_adds_to_a_run_until_it_has_ended(runs: Any) -> None:
    name = (await create_run(runs, params={"lr": "0.1"}, tags={"a": "1"})).name
    run = await runs.update(
        name, RunUpdate({"lr": "9", "seed": "7"}, {"a": "2", "b": "3"}, (ARTIFACT,)), AT + SECOND
    )
    assert ({"lr": "0.1", "seed": "7"}, {"a": "2", "b": "3"}) == (run.params, run.tags)
    assert ((ARTIFACT,), RunState.RUNNING, None) == (run.artifacts, run.state, run.ended_at)
    failed = RunUpdate(state=RunState.FAILED, error_message="out of memory")
    ended = await runs.update(name, failed, AT + 2 * SECOND)
    assert RunState.FAILED == ended.state
    assert ("out of memory", AT + 2 * SECOND) == (ended.error_message, ended.ended_at)
    for late in (
        runs.update(name, RunUpdate(tags={"late": "1"}), AT),
        runs.update(name, RunUpdate(state=RunState.SUCCEEDED), AT),
        runs.log(name, [point("loss", 1, 1.0)], AT),
    ):
        with pytest.raises(RunEnded):
            await late
    assert ended == await runs.get_run(name)
    with pytest.raises(UnknownRun):
        await runs.update(RunName("p", "none"), RunUpdate(), AT)


async def test_a_run_without_a_heartbeat_within_its_lease_is_lost(runs: Any) -> None:
    for number, lease in (("1", 10.0), ("2", 10.0), ("3", 100.0)):
        await create_run(runs, f"run-{number}", lease_seconds=lease)
    await runs.update(RunName("p", "run-2"), RunUpdate(), AT + 5 * SECOND)
    assert [] == await runs.expire(AT + 10 * SECOND, AT)
    # A process that was down until second 20 received no heartbeat before.
    assert [] == await runs.expire(AT + 25 * SECOND, AT + 20 * SECOND)
    assert ["projects/p/runs/run-1"] == await runs.expire(AT + 11 * SECOND, AT)
    lost = await runs.get_run(RunName("p", "run-1"))
    assert (RunState.LOST, AT + 11 * SECOND) == (lost.state, lost.ended_at)
    assert [] == await runs.expire(AT + 12 * SECOND, AT)
    await runs.log(RunName("p", "run-2"), [point("loss", 1, 1.0)], AT + 14 * SECOND)
    assert [] == await runs.expire(AT + 24 * SECOND, AT)


async def test_runs_are_filtered_and_ordered_page_by_page(runs: Any) -> None:
    for i, auc in enumerate([0.5, 0.75, None, 0.75, math.nan]):
        name = (await create_run(runs, f"run-{i}", params={"lr": str(i % 2)}, tags={"n": str(i)})).name
        if auc is not None:
            await runs.log(name, [point("auc", 1, auc)], AT)
    await runs.update(RunName("p", "run-0"), RunUpdate(state=RunState.SUCCEEDED), AT)

    async def found(filter_: str = "", order: str = "", size: int = 99) -> list[str]:
        names, token = [], ""
        while True:
            page = await runs.list_runs("p", parse_filter(filter_), parse_order(order), size, token)
            names += [r.name.run.removeprefix("run-") for r in page.items]
            token = page.next_page_token
            if not token:
                return names

    for size in (1, 3, 99):
        assert ["4", "3", "2", "1", "0"] == await found(size=size)
        assert ["0", "1", "3", "2", "4"] == await found(order="metrics.auc", size=size)
        assert ["3", "1", "0", "4", "2"] == await found(order="-metrics.auc", size=size)
        assert ["3", "1"] == await found("metrics.auc>0.6", "-metrics.auc", size)
        assert ["0"] == await found("metrics.auc<0.6 AND metrics.auc>=0.5", "metrics.auc", size)
        assert ["3", "1", "0"] == await found("metrics.auc<0.6 OR metrics.auc>0.6", "-metrics.auc", size)
        assert ["3", "1"] == await found("max.auc>0.6", "-metrics.auc", size)
        assert ["1", "3"] == await found("metrics.auc>0.6", "min.auc", size)
        assert ["0", "4", "2"] == await found("NOT metrics.auc>0.6", "-metrics.auc", size)
    assert ["3", "1"] == await found("params.lr=1 AND metrics.auc>0.6")
    assert ["3", "1", "0"] == await found("metrics.auc>0"), "NaN matches no comparison"
    assert ["4", "3", "2", "1"] == await found("state=RUNNING")
    assert ["4", "2", "1", "0"] == await found("tags.n!=3")
    assert ["0"] == await found("metrics.auc!=0.75")
    assert ["4", "3", "2", "1", "0"] == await found("experiment=late AND params.none!=x")
    assert [] == await found("experiment=other")


async def test_runs_are_found_by_any_name_of_a_metric_param_or_tag(runs: Any) -> None:
    odd = {"": "empty", "a`b": '"', "größe = 1": "x AND y", "a'; --\\": "{}", "a.b": ""}
    name = (await create_run(runs, "run-1", params=odd, tags=odd)).name
    await create_run(runs, "run-2", params={"a": "b"})
    await runs.log(name, [point("val/loss@5{a=b}", 1, 0.5)], AT)
    terms = [Term(field, key, "=", value) for field in ("params", "tags") for key, value in odd.items()]
    for term in (*terms, *parse_filter("metrics.`val/loss@5{a=b}`<0.6")):
        page = await runs.list_runs("p", (term,), None, 9, "")
        assert [name] == [run.name for run in page.items], term
