"""Contract tests for names, notes, deletion, continuation and the search of runs."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from flywheel_common.errors import Unavailable
from flywheel_job.outcome import Outcome
from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.runs.errors import (
    RunActive,
    RunContinued,
    RunDeleted,
    RunEnded,
    RunExists,
    RunOfJob,
    UnknownRun,
)
from flywheel_trainer.runs.run import MetricSummary, Run, RunEdit, RunName, RunState, RunUpdate
from flywheel_trainer.runs.search import parse_filter, parse_order
from tests.support.builders.trainer import ARTIFACT, AT, EXPERIMENT, SECOND, job
from tests.support.builders.trainer import metric_point as point

NAME = RunName("p", "run-1")
DAY = timedelta(days=1)


@pytest.fixture
async def runs(stores: Any) -> Any:
    """A store with EXPERIMENT."""
    await stores.runs.create_experiment(EXPERIMENT, "", b"", AT)
    return stores.runs


@pytest.fixture
def edits(stores: Any) -> Any:
    return stores.run_edits


async def create_run(runs: Any, run: str = "run-1", **fields: Any) -> Run:
    return await runs.create_run(Run(RunName("p", run), "late", **fields), "", b"", AT)


async def end(runs: Any, name: RunName, state: RunState = RunState.SUCCEEDED, **fields: Any) -> Run:
    return await runs.update(name, RunUpdate(state=state, **fields), AT + SECOND)


async def test_a_run_has_a_chosen_name_a_parent_and_a_past_start(runs: Any) -> None:
    parent = await create_run(runs)
    early = AT - 5 * DAY
    child = await create_run(runs, "run-2", parent_run=str(parent.name), started_at=early, notes="# why")
    assert (str(parent.name), early, "# why") == (child.parent_run, child.started_at, child.notes)
    assert AT == (await create_run(runs, "run-3", started_at=AT + DAY)).started_at
    with pytest.raises(RunExists):
        await create_run(runs)
    for other in ("projects/p/runs/none", "projects/q/runs/run-1"):
        with pytest.raises(UnknownRun):
            await create_run(runs, "run-4", parent_run=other)
    ended = await end(runs, child.name, ended_at=AT - DAY)
    assert AT - DAY == ended.ended_at
    assert AT == (await end(runs, parent.name, ended_at=AT - DAY)).ended_at, "not before its start"


async def test_an_ended_run_gets_another_name_notes_and_tags(runs: Any, edits: Any) -> None:
    name = (await create_run(runs, tags={"a": "1", "b": "2"}, display_name="x")).name
    await end(runs, name)
    edit = RunEdit(notes="good", tags={"b": "3", "c": "4"}, removed_tags=("a", "none"))
    edited = await edits.edit(name, edit, "once", b"1")
    assert ("x", "good", {"b": "3", "c": "4"}) == (edited.display_name, edited.notes, edited.tags)
    await edits.edit(name, RunEdit(display_name="y", notes=""), "", b"")
    again = await edits.edit(name, edit, "once", b"1")
    assert ("y", "") == (again.display_name, again.notes), "a repeated request has no second effect"
    assert again == await runs.get_run(name)
    with pytest.raises(UnknownRun):
        await edits.edit(RunName("q", "run-1"), edit, "", b"")


async def test_a_deleted_run_is_hidden_until_it_is_restored(runs: Any, edits: Any) -> None:
    name = (await create_run(runs)).name
    with pytest.raises(RunActive):
        await edits.set_deleted(name, AT)
    await end(runs, name)
    assert AT == (await edits.set_deleted(name, AT)).deleted_at
    assert AT == (await edits.set_deleted(name, AT + DAY)).deleted_at
    assert [] == list((await runs.list_runs("p", (), None, 9, "")).items)
    shown = await runs.list_runs("p", (), None, 9, "", show_deleted=True)
    assert [name] == [run.name for run in shown.items]
    for call in (
        runs.log(name, [point("loss", 1, 1.0)], AT),
        edits.continue_run(name, None, AT, "", b""),
        edits.add_artifact(name, ARTIFACT, AT),
    ):
        with pytest.raises(RunDeleted):
            await call
    assert (await edits.set_deleted(name, None)).deleted_at is None
    assert [name] == [run.name for run in (await runs.list_runs("p", (), None, 9, "")).items]


async def test_a_lost_run_goes_on_when_its_process_reports(runs: Any) -> None:
    name = (await create_run(runs, lease_seconds=1.0)).name
    for report in (
        lambda: runs.log(name, [point("loss", 1, 1.0)], AT + 10 * SECOND),
        lambda: runs.update(name, RunUpdate(), AT + 20 * SECOND),
    ):
        assert [str(name)] == await runs.expire(AT + 15 * SECOND, AT)
        assert RunState.LOST is (await runs.get_run(name)).state
        await report()
        back = await runs.get_run(name)
        assert (RunState.RUNNING, None, "") == (back.state, back.ended_at, back.error_message)
    await runs.expire(AT + 99 * SECOND, AT)
    assert RunState.SUCCEEDED is (await end(runs, name)).state
    with pytest.raises(RunEnded):
        await runs.log(name, [point("loss", 2, 1.0)], AT)


async def test_a_run_of_a_lost_job_stays_lost(stores: Any, runs: Any) -> None:
    lost = job()
    await stores.jobs.create(lost, {}, "", b"", AT)
    await (await stores.supervise()).end(lost.name, JobState.LOST, Outcome(False, "JOB_LOST"), AT)
    with pytest.raises(RunEnded):
        await runs.update(lost.run, RunUpdate(), AT)
    with pytest.raises(RunOfJob):
        await stores.run_edits.continue_run(lost.run, None, AT, "", b"")


async def test_a_continued_run_is_rewound_and_refuses_its_former_process(runs: Any, edits: Any) -> None:
    name = (await create_run(runs)).name
    await runs.log(name, [point("loss", step, float(step)) for step in range(5)], AT, generation=1)
    await runs.log(name, [point("late", 9, 1.0), point("system/cpu_percent", 10**9, 5.0)], AT)
    await end(runs, name, RunState.FAILED, error_message="preempted")
    run = await edits.continue_run(name, 2, AT + DAY, "once", b"2")
    assert (RunState.RUNNING, None, "", 2) == (run.state, run.ended_at, run.error_message, run.generation)
    assert {"loss": 2.0, "system/cpu_percent": 5.0} == run.metrics
    assert MetricSummary(0.0, 2.0, 2) == run.summaries["loss"]
    with pytest.raises(RunContinued):
        await runs.log(name, [point("loss", 3, 99.0)], AT + DAY, generation=1)
    with pytest.raises(RunContinued):
        await runs.update(name, RunUpdate(generation=1), AT + DAY)
    await runs.log(name, [point("loss", 3, 30.0)], AT + DAY, generation=2)
    assert 2 == (await edits.continue_run(name, 2, AT + DAY, "once", b"2")).generation
    assert [0.0, 1.0, 2.0, 30.0] == [p.value for p in (await runs.points(name, "loss", 9, "")).items]
    again = await edits.continue_run(name, None, AT + DAY, "", b"")
    assert (30.0, 3) == (again.metrics["loss"], again.generation)


async def test_an_artifact_replaces_one_of_its_name(runs: Any, edits: Any) -> None:
    name = (await create_run(runs, artifacts=(ARTIFACT,))).name
    other, newer = replace(ARTIFACT, name="log"), replace(ARTIFACT, sha256="cd" * 32)
    for artifact in (other, newer):
        await edits.add_artifact(name, artifact, AT)
    assert (other, newer) == (await runs.get_run(name)).artifacts


async def test_extremes_of_a_metric_leave_nan_out(runs: Any) -> None:
    name = (await create_run(runs)).name
    nan = math.nan
    await runs.log(name, [point("a", 2, nan), point("a", 1, 3.0), point("b", 1, nan)], AT)
    await runs.log(name, [point("a", 3, 5.0), point("a", 4, nan), point("c", 1, math.inf)], AT)
    await runs.log(name, [point("a", 0, -1.0)], AT)
    run = await runs.get_run(name)
    assert MetricSummary(-1.0, 5.0, 4) == run.summaries["a"]
    assert MetricSummary(math.inf, math.inf, 1) == run.summaries["c"]
    assert math.isnan(run.metrics["a"])
    assert all(map(math.isnan, (run.summaries["b"].min, run.summaries["b"].max)))


async def found(runs: Any, filter_: str = "", order: str = "", size: int = 99) -> str:
    names, token = "", ""
    while True:
        page = await runs.list_runs("p", parse_filter(filter_), parse_order(order), size, token)
        names += "".join(r.name.run.removeprefix("run-") for r in page.items)
        token = page.next_page_token
        if not token:
            return names


async def test_runs_are_found_by_every_field_with_and_or_not(runs: Any, edits: Any) -> None:
    losses = [[3.0, 1.0], [2.0, 5.0], [4.0], [], [math.nan], [math.inf, 2.5]]
    for i, values in enumerate(losses):
        started = datetime(2026, 1, 1, i, tzinfo=AT.tzinfo) - DAY
        params = {"lr": f"1e-{i}", "odd": "x" if i % 2 else "y (a)"}
        name = (
            await create_run(
                runs,
                f"run-{i}",
                params=params,
                started_at=started,
                display_name=f"n{i % 3}",
                parent_run="projects/p/runs/run-0" if i in (2, 3) else "",
            )
        ).name
        await runs.log(name, [point("loss", step, value) for step, value in enumerate(values)], AT)
    await end(runs, RunName("p", "run-1"))
    for text, names in {
        "min.loss<=2": "10",
        "max.loss>4": "51",
        "max.loss>4 AND NOT metrics.loss>3": "5",
        "NOT min.loss>0": "43",
        "params.lr<0.02 AND params.lr>1e-3": "2",
        "params.odd<5": "",
        'params.odd="y (a)"': "420",
        "(params.lr=1e-0 OR params.lr=1e-1) AND params.odd=x": "1",
        "params.lr=1e-0 OR params.lr=1e-1 AND params.odd=x": "10",
        "NOT (state=RUNNING OR display_name=n0)": "1",
        "started_at>=2025-12-31T03:00:00Z AND started_at<2025-12-31T05:00:00+00:00": "43",
        "ended_at>2025-01-01": "1",
        "NOT ended_at>2025-01-01 AND display_name!=n0": "542",
        "parent_run=projects/p/runs/run-0": "32",
        "parent_run=run-0": "32",
        "metrics.loss=1 OR min.loss=2 OR max.loss=4": "210",
    }.items():
        assert names == await found(runs, text), text
    for order, names in {
        "": "543210",
        "started_at": "012345",
        "-started_at": "543210",
        "min.loss": "015234",
        "-min.loss": "251043",
        "max.loss": "021534",
        "-max.loss": "512043",
    }.items():
        for size in (1, 2, 99):
            assert names == await found(runs, order=order, size=size), order


async def test_runs_that_were_deleted_long_ago_are_purged(runs: Any, edits: Any) -> None:
    shared, own = replace(ARTIFACT, sha256="a" * 64), replace(ARTIFACT, sha256="b" * 64)
    for place, artifacts in enumerate([(shared, own, replace(own, name="again")), (shared,), (), (shared,)]):
        name = (await create_run(runs, f"run-{place}", artifacts=artifacts)).name
        await runs.log(name, [point("loss", 1, 0.5)], AT)
        await end(runs, name)
    older, newer, kept, restored = (RunName("p", f"run-{place}") for place in range(4))
    await edits.set_deleted(newer, AT + DAY)
    await edits.set_deleted(older, AT)
    await edits.set_deleted(restored, AT)
    assert [older, restored, newer] == [r.name for r in await edits.deleted_before("p", AT + 2 * DAY, 9)]
    assert [older] == [r.name for r in await edits.deleted_before("p", AT + 2 * DAY, 1)]
    assert [] == await edits.deleted_before("p", AT, 9)
    assert [] == await edits.deleted_before("other", AT + 2 * DAY, 9)
    await edits.set_deleted(restored, None)
    removed: list[str] = []

    async def remove(artifacts: Any) -> None:
        removed.extend(one.sha256 for one in artifacts)

    for name in (kept, restored, newer, RunName("p", "none"), RunName("other", "run-0")):
        assert not await edits.purge(name, AT + SECOND, remove), name
    assert [] == removed
    assert await edits.purge(older, AT + SECOND, remove)
    assert [own.sha256] == removed, "another run has the shared file"
    assert await runs.get_run(older) is None
    assert [] == await edits.deleted_before("p", AT + SECOND, 9)
    assert 0.5 == (await runs.get_run(newer)).metrics["loss"]
    again = await create_run(runs, "run-0")
    assert {} == again.metrics, "its points are gone"


async def test_a_run_whose_files_cannot_be_removed_is_not_purged(runs: Any, edits: Any) -> None:
    name = (await create_run(runs, artifacts=(replace(ARTIFACT, sha256="a" * 64),))).name
    await end(runs, name)
    await edits.set_deleted(name, AT)

    async def fail(_artifacts: Any) -> None:
        raise Unavailable("the object store is away")

    with pytest.raises(Unavailable):
        await edits.purge(name, AT + SECOND, fail)
    assert name == (await runs.get_run(name)).name


async def test_runs_of_jobs_are_not_purged(stores: Any, runs: Any, edits: Any) -> None:
    created = job()
    await stores.jobs.create(created, {}, "", b"", AT)
    await (await stores.supervise()).end(created.name, JobState.FAILED, Outcome(False, "FAILED"), AT)
    await edits.set_deleted(created.run, AT)
    assert [] == await edits.deleted_before("p", AT + DAY, 9)

    async def remove(_artifacts: Any) -> None:
        raise AssertionError

    assert not await edits.purge(created.run, AT + DAY, remove)
