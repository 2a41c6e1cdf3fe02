"""What jobs of training sets leave behind where nobody could clear up after them."""

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
from flywheel_local.s3 import S3
from tests.support.builders.partitioned_joins import S3World, Watched, request

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def world(s3: S3, tmp_path: Path) -> S3World:
    return S3World(s3, f"test-{uuid.uuid4().hex[:16]}", tmp_path / "spill")


class Ended:
    """Jobs that end when they are told to."""

    def __init__(self) -> None:
        self.store = MemoryJobs()

    async def job(self, job_id: str, training_set: str, state: JobState | None, at: datetime = NOW) -> None:
        """`state` None: it still runs."""
        name = f"projects/p/trainingSets/{training_set}"
        await self.store.create(Job("p", job_id, KIND, b"", at, training_set=name), "", b"")
        held = await self.store.claim("one", [KIND], 60.0)
        assert held is not None
        if state is not None:
            await self.store.finish(replace(held, state=state, ended_at=at), "one")


def files(world: S3World) -> set[str]:
    """Keys of training sets' files."""
    root = f"{world.bucket}/training-sets"
    found = world.files.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    return {i.path.removeprefix(f"{root}/") for i in found if i.type == fs.FileType.File}


def leftovers(world: S3World, ended: Ended, clock: ManualClock) -> Leftovers:
    return Leftovers(ended.store, KIND, world.training_sets, world.tables, [world.process], clock)


async def die_in_the_middle(world: S3World, training_set: str, job_id: str) -> None:
    """What kill -9 does: nobody waits for the join any more, and nothing is cleared up."""
    building = asyncio.create_task(
        world.builder(world.process).build(request(training_set), Watched(), job_id)
    )
    while not list(world.spill.glob(f"feature-p-{job_id}/view-*/joined-*.parquet")):
        assert not building.done()
        await asyncio.sleep(0.005)
    building.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await building


@pytest.mark.parametrize("state", [JobState.LOST, JobState.FAILED, JobState.CANCELLED])
async def test_files_of_a_job_that_ended_without_a_set_go(world: S3World, state: JobState) -> None:
    await die_in_the_middle(world, "one", "dead")
    part = pl.DataFrame({"half": [1]})
    for key in ("one/feature-p-dead/parts/part-0", "one/feature-p-dead/0123-45/part-0"):
        world.tables.write(f"s3://{world.bucket}/training-sets/p/{key}.parquet", part)
    others = {f"p/one/feature-p-{job}/parts/part-0.parquet" for job in ("alive", "unknown", "dead-too")}
    for key in others:
        world.tables.write(f"s3://{world.bucket}/training-sets/{key}", part)
    ended, clock = Ended(), ManualClock(NOW)
    await ended.job("dead", "one", state)
    await ended.job("alive", "one", None)
    assert 1 == len(list(world.spill.glob("*")))
    sweeper = leftovers(world, ended, clock)
    await sweeper.sweep()
    assert 1 == len(list(world.spill.glob("*"))), "whoever held the job may still be about to notice"
    clock.advance(4 * LEASE_SECONDS + 1)
    await sweeper.sweep()
    assert [] == list(world.spill.glob("*"))
    assert others == files(world)


async def test_a_registered_set_stays_however_its_job_ended(world: S3World) -> None:
    await world.builder(world.process).build(request("parts"), Watched(), "first")
    built = await world.builder().build(request("whole"), Watched(), "second")
    kept = files(world)
    assert 2 == len(kept)
    world.tables.write(f"{built.uri.rsplit('/', 2)[0]}/0123-45/part-0.parquet", pl.DataFrame({"half": [1]}))
    ended, clock = Ended(), ManualClock(NOW)
    await ended.job("first", "parts", JobState.SUCCEEDED)
    await ended.job("second", "whole", JobState.LOST)
    clock.advance(100)
    await leftovers(world, ended, clock).sweep()
    assert kept == files(world)


class Away(PartitionProcess):
    """Its disk cannot be reached at first."""

    def __init__(self, process: PartitionProcess) -> None:
        super().__init__(process._directory, {})
        self.away, self.discarded = True, list[str]()

    async def discard(self, name: str) -> None:
        if self.away and name == "feature-p-a":
            raise Unavailable("The disk is away.", reason="OBJECT_STORE_DOWN")
        self.discarded.append(name)


async def test_what_cannot_be_removed_now_waits_for_the_next_sweep_and_holds_nothing_else_up(
    world: S3World,
) -> None:
    ended, clock, engine = Ended(), ManualClock(NOW), Away(world.process)
    await ended.job("long-ago", "old", JobState.LOST, NOW - timedelta(days=8))
    for job in ("a", "b"):
        await ended.job(job, job, JobState.LOST)
    sweeper = Leftovers(ended.store, KIND, world.training_sets, world.tables, [engine], clock)
    clock.advance(3600)
    with pytest.raises(Unavailable):
        await sweeper.sweep()
    assert ["feature-p-b"] == engine.discarded
    engine.away = False
    for _ in range(3):
        clock.advance(3600)
        await sweeper.sweep()
    assert ["feature-p-b", "feature-p-a"] == engine.discarded, "each once"
