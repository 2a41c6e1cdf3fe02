"""Removal of files that ended training set jobs left behind."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pyarrow.fs as fs
import pytest

from flywheel_common.clock import ManualClock
from flywheel_common.errors import Unavailable
from flywheel_feature.api.convert_training_sets import TRAINING_SET_JOB as KIND
from flywheel_feature.fakes.jobs import MemoryJobs
from flywheel_feature.jobs.model import Job, JobState
from flywheel_feature.jobs.runner import LEASE_SECONDS
from flywheel_feature.offline.leftovers import Leftovers
from flywheel_feature.store.engines.process import PartitionProcess
from flywheel_feature.tables.errors import ObjectStoreDown
from flywheel_local.s3 import S3
from tests.support.builders.jobs import RecordingJob
from tests.support.builders.partitioned_joins import S3JoinInputs, request

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def inputs(s3: S3, tmp_path: Path) -> S3JoinInputs:
    return S3JoinInputs(s3, f"test-{uuid.uuid4().hex[:16]}", tmp_path / "spill")


class JobsInStates:
    """A job store with jobs in given states."""

    def __init__(self) -> None:
        self.store = MemoryJobs()

    async def job(self, job_id: str, training_set: str, state: JobState | None, at: datetime = NOW) -> None:
        """Add a job that ended in `state`, or still runs (None)."""
        name = f"projects/p/trainingSets/{training_set}"
        await self.store.create(Job("p", job_id, KIND, b"", at, training_set=name), "", b"")
        held = await self.store.claim("one", [KIND], 60.0)
        assert held is not None
        if state is not None:
            await self.store.finish(replace(held, state=state, ended_at=at), "one")


def files(inputs: S3JoinInputs) -> set[str]:
    """Keys of the files of training sets."""
    root = f"{inputs.bucket}/training-sets"
    found = inputs.files.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    return {i.path.removeprefix(f"{root}/") for i in found if i.type == fs.FileType.File}


def leftovers(inputs: S3JoinInputs, ended: JobsInStates, clock: ManualClock) -> Leftovers:
    return Leftovers(ended.store, KIND, inputs.training_sets, inputs.tables, [inputs.process], clock)


async def abandon_join(inputs: S3JoinInputs, training_set: str, job_id: str) -> None:
    """Start a join and abandon it without clean-up, as after kill -9."""
    building = asyncio.create_task(
        inputs.builder(inputs.process).build(request(training_set), RecordingJob(), job_id)
    )
    while not list(inputs.spill.glob(f"feature-p-{job_id}/view-*/joined-*.parquet")):
        assert not building.done()
        await asyncio.sleep(0.005)
    building.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await building


@pytest.mark.parametrize("state", [JobState.LOST, JobState.FAILED, JobState.CANCELLED])
async def test_files_of_a_job_that_ended_without_a_training_set_are_removed(
    inputs: S3JoinInputs, state: JobState
) -> None:
    await abandon_join(inputs, "one", "dead")
    part = pl.DataFrame({"half": [1]})
    for key in ("one/feature-p-dead/parts/part-0", "one/feature-p-dead/0123-45/part-0"):
        inputs.tables.write(f"s3://{inputs.bucket}/training-sets/p/{key}.parquet", part)
    others = {f"p/one/feature-p-{job}/parts/part-0.parquet" for job in ("alive", "unknown", "dead-too")}
    for key in others:
        inputs.tables.write(f"s3://{inputs.bucket}/training-sets/{key}", part)
    ended, clock = JobsInStates(), ManualClock(NOW)
    await ended.job("dead", "one", state)
    await ended.job("alive", "one", None)
    assert 1 == len(list(inputs.spill.glob("*")))
    sweeper = leftovers(inputs, ended, clock)
    await sweeper.sweep()
    assert 1 == len(list(inputs.spill.glob("*"))), "the process that held the job may not have noticed yet"
    clock.advance(4 * LEASE_SECONDS + 1)
    await sweeper.sweep()
    assert [] == list(inputs.spill.glob("*"))
    assert others == files(inputs)


async def test_files_of_a_registered_training_set_stay_for_any_job_state(inputs: S3JoinInputs) -> None:
    await inputs.builder(inputs.process).build(request("parts"), RecordingJob(), "first")
    built = await inputs.builder().build(request("in-memory"), RecordingJob(), "second")
    kept = files(inputs)
    assert 2 == len(kept)
    inputs.tables.write(f"{built.uri.rsplit('/', 2)[0]}/0123-45/part-0.parquet", pl.DataFrame({"half": [1]}))
    ended, clock = JobsInStates(), ManualClock(NOW)
    await ended.job("first", "parts", JobState.SUCCEEDED)
    await ended.job("second", "in-memory", JobState.LOST)
    clock.advance(100)
    await leftovers(inputs, ended, clock).sweep()
    assert kept == files(inputs)


class UnreachableEngine(PartitionProcess):
    """An engine that cannot discard one join while `unreachable` is set."""

    def __init__(self, process: PartitionProcess) -> None:
        super().__init__(process._directory, {})
        self.unreachable, self.discarded = True, list[str]()

    async def discard(self, name: str) -> None:
        if self.unreachable and name == "feature-p-a":
            raise ObjectStoreDown("The disk is down.")
        self.discarded.append(name)


async def test_a_failed_removal_is_retried_and_does_not_block_others(
    inputs: S3JoinInputs,
) -> None:
    ended, clock, engine = JobsInStates(), ManualClock(NOW), UnreachableEngine(inputs.process)
    await ended.job("long-ago", "old", JobState.LOST, NOW - timedelta(days=8))
    for job in ("a", "b"):
        await ended.job(job, job, JobState.LOST)
    sweeper = Leftovers(ended.store, KIND, inputs.training_sets, inputs.tables, [engine], clock)
    clock.advance(3600)
    with pytest.raises(Unavailable):
        await sweeper.sweep()
    assert ["feature-p-b"] == engine.discarded
    engine.unreachable = False
    for _ in range(3):
        clock.advance(3600)
        await sweeper.sweep()
    assert ["feature-p-b", "feature-p-a"] == engine.discarded, "each join is discarded once"
