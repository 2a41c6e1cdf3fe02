"""Contract tests for stores of trials, each of which is stored with its run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flywheel_common.granted.errors import AttemptEnded
from flywheel_job.outcome import Outcome
from flywheel_job.tuning.trial import Segment, Trial, TrialState
from flywheel_trainer.jobs.attempt import engine_id
from flywheel_trainer.jobs.job import Job, JobState
from flywheel_trainer.jobs.ports import OF_TRIALS
from flywheel_trainer.runs.errors import ForeignRun, RunEnded
from flywheel_trainer.runs.run import RunName, RunState
from flywheel_trainer.runs.search import parse_filter
from flywheel_trainer.trials.errors import InvalidTrial
from tests.support.builders import trainer as build
from tests.support.builders.trainer import ARTIFACT, AT, EXPERIMENT, SECOND
from tests.support.builders.trainer import metric_point as point

FIRST = Trial(0, '{"learning_rate": 0.01, "kind": "net"}')
SUCCESS = replace(FIRST, state=TrialState.SUCCEEDED, values=(0.75,), violations=(-0.5,), last_step=3)
OUTCOME = Outcome(
    True, artifacts=(ARTIFACT,), params={"workers": "1"}, code_version="c", environment={"a": "b"}
)


@pytest.fixture
async def job(stores: Any) -> Job:
    """A running TUNE job with an attempt."""
    await stores.runs.create_experiment(EXPERIMENT, "", b"", AT)
    created: Job = await stores.jobs.create(build.tune_job(), {}, "", b"", AT)
    supervision = await stores.supervise()
    await supervision.begin_attempt(created.name, AT)
    await supervision.mark_running(created.name, 1, AT)
    return created


ATTEMPT = engine_id("job-1", 1)
RUN = RunName("p", "run-1-0")


async def record(stores: Any, job: Job, trial: Trial, outcome: Outcome | None = None, **fields: Any) -> Trial:
    at, attempt = fields.get("at", AT), fields.get("attempt", ATTEMPT)
    stored: Trial = await stores.trials.record(job.name, trial, outcome, attempt, at)
    return stored


async def test_a_tune_job_survives_its_store(stores: Any, job: Job) -> None:
    found = await stores.jobs.get(job.name)
    assert (found.spec, found.kind) == (build.TUNE_SPEC, "TUNE")


async def test_a_trial_is_stored_with_a_run_below_that_of_its_job(stores: Any, job: Job) -> None:
    stored = await record(stores, job, FIRST)
    assert stored == FIRST.at(AT, None)
    run = await stores.runs.get_run(RUN)
    assert (run.parent_run, run.job, run.state) == (str(job.run), str(job.name), RunState.RUNNING)
    assert (run.experiment, run.training_set) == (job.spec.experiment, job.spec.training_set)
    assert run.params == {"learning_rate": "0.01", "kind": "net"}
    assert (await stores.runs.get_run(job.run)).parent_run == ""


async def test_runs_are_found_by_the_run_of_their_job(stores: Any, job: Job) -> None:
    for number in range(3):
        await record(stores, job, Trial(number))
    below = await stores.runs.list_runs("p", parse_filter("parent_run=run-1"), None, 99, "")
    assert [one.name.run for one in below.items] == ["run-1-2", "run-1-1", "run-1-0"]
    none = await stores.runs.list_runs("p", parse_filter('parent_run=""'), None, 99, "")
    assert [one.name for one in none.items] == [job.run]


async def test_the_end_of_a_trial_is_the_end_of_its_run(stores: Any, job: Job) -> None:
    await record(stores, job, FIRST)
    ended = await record(stores, job, SUCCESS, OUTCOME, at=AT + SECOND)
    assert ended == SUCCESS.at(AT, AT + SECOND)
    assert await stores.trials.get(job.name, 0) == ended
    run = await stores.runs.get_run(RUN)
    assert (run.state, run.artifacts, run.ended_at) == (RunState.SUCCEEDED, (ARTIFACT,), AT + SECOND)
    assert run.params == {"learning_rate": "0.01", "kind": "net", "workers": "1"}
    # A repeated or a late record changes nothing.
    failed = replace(FIRST, state=TrialState.FAILED)
    assert await record(stores, job, failed, Outcome(False), at=AT + 2 * SECOND) == ended
    assert await stores.runs.get_run(RUN) == run


@pytest.mark.parametrize(
    ("state", "run_state"), [(TrialState.STOPPED, RunState.CANCELLED), (TrialState.FAILED, RunState.FAILED)]
)
async def test_an_unsuccessful_trial_ends_its_run(
    stores: Any, job: Job, state: TrialState, run_state: RunState
) -> None:
    await record(stores, job, FIRST)
    ended = replace(FIRST, state=state, error_reason="R", error_message="a\0b", rungs={0: 1.5, 1: 0.5})
    stored = await record(stores, job, ended, Outcome(False, "R", "a\0b"))
    assert stored.state is state
    assert stored.rungs == {0: 1.5, 1: 0.5}
    assert (await stores.runs.get_run(RUN)).state is run_state


async def test_a_running_trial_keeps_its_latest_record(stores: Any, job: Job) -> None:
    await record(stores, job, FIRST)
    segments = (Segment(0, None, '{"r": 1}', 10, 0.5), Segment(1, 0, '{"r": 2}', 20, 0.25))
    changed = replace(FIRST, params_json='{"r": 2}', segments=segments, last_value=0.0)
    assert await record(stores, job, changed, at=AT + SECOND) == changed.at(AT, None)
    assert list(await stores.trials.all(job.name)) == [changed.at(AT, None)]


async def test_trials_are_listed_in_pages_by_number(stores: Any, job: Job) -> None:
    for number in range(12):
        await record(stores, job, Trial(number))
    numbers, token = [], ""
    while True:
        page = await stores.trials.list(job.name, 5, token)
        numbers.append([one.number for one in page.items])
        token = page.next_page_token
        if not token:
            break
    assert numbers == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert await stores.trials.get(job.name, 12) is None


async def test_numbers_of_trials_have_no_gaps(stores: Any, job: Job) -> None:
    with pytest.raises(InvalidTrial):
        await record(stores, job, Trial(1))
    assert list(await stores.trials.all(job.name)) == []


async def test_only_the_active_attempt_of_the_job_records(stores: Any, job: Job) -> None:
    await stores.jobs.create(build.tune_job("2"), {}, "", b"", AT)
    supervision = await stores.supervise()
    other = await supervision.begin_attempt(build.tune_job("2").name, AT)
    with pytest.raises(ForeignRun):
        await record(stores, job, FIRST, attempt=other.engine_id)
    await supervision.end_attempt(job.name, 1, "JOB_LOST", "", AT)
    with pytest.raises(AttemptEnded):
        await record(stores, job, FIRST)
    second = await supervision.begin_attempt(job.name, AT)
    assert (await record(stores, job, FIRST, attempt=second.engine_id)).number == 0


async def test_an_attempt_logs_metrics_of_its_trials(stores: Any, job: Job) -> None:
    await record(stores, job, FIRST)
    await stores.runs.log(RUN, [point("loss", 2, 0.5), point("system/cpu_percent", 99, 0.5)], AT, ATTEMPT)
    await stores.runs.log(job.run, [point("finished_trials", 0, 0)], AT, ATTEMPT)
    assert (await stores.runs.get_run(RUN)).metrics == {"loss": 0.5, "system/cpu_percent": 0.5}
    supervision = await stores.supervise()
    assert await supervision.last_steps(job.run) == {"finished_trials": 0, OF_TRIALS: 3}
    await record(stores, job, SUCCESS, OUTCOME)
    assert await supervision.last_steps(job.run) == {"finished_trials": 0}
    with pytest.raises(RunEnded):
        await stores.runs.log(RUN, [point("loss", 3, 0.4)], AT, ATTEMPT)


async def test_the_end_of_a_job_ends_its_running_trials(stores: Any, job: Job) -> None:
    await record(stores, job, FIRST)
    await record(stores, job, Trial(1))
    await record(stores, job, SUCCESS, OUTCOME)
    supervision = await stores.supervise()
    await supervision.end(job.name, JobState.CANCELLED, Outcome(False), AT + SECOND)
    states = [one.state for one in await stores.trials.all(job.name)]
    assert states == [TrialState.SUCCEEDED, TrialState.CANCELLED]
    run = await stores.runs.get_run(RunName("p", "run-1-1"))
    assert (run.state, run.ended_at) == (RunState.CANCELLED, AT + SECOND)


async def test_a_running_trial_has_no_lease(stores: Any, job: Job) -> None:
    await record(stores, job, FIRST)
    assert await stores.runs.expire(AT + 1000 * SECOND, AT) == []
