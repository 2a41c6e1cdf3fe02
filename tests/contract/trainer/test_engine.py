"""One law for the compute engine, in memory and on Ray."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from flywheel_common.deadline import budget, left_seconds
from flywheel_common.errors import Unavailable
from flywheel_common.ray.jobs import ray_jobs
from flywheel_local.ray import Ray
from flywheel_trainer.fakes.engine import MemoryEngine
from flywheel_trainer.jobs.engine import Engine, EngineJob, EngineState
from flywheel_trainer.store.ray.engine import RayEngine
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy

PATIENT = 60.0
GREET = 'echo "good $PART"'
OTHER = "echo other"
FAIL = "echo wrong; exit 3"
STAY = "echo begun; exec sleep 600"
LONG = "seq 50000; printf 'r\\303\\274ckw\\303\\244rts\\n'"
PROGRAMS = {
    GREET: lambda environment: (f"good {environment.get('PART', '')}\n", 0),
    OTHER: lambda _: ("other\n", 0),
    FAIL: lambda _: ("wrong\n", 3),
    STAY: lambda _: ("begun\n", None),
    LONG: lambda _: ("".join(f"{n}\n" for n in range(1, 50_001)) + "rückwärts\n", 0),
}


@dataclass
class Engines:
    here: Engine
    away: Engine
    """One that does not answer."""


@pytest.fixture(params=["memory", "ray"])
async def engines(request: pytest.FixtureRequest) -> AsyncIterator[Engines]:
    if request.param == "memory":
        away = MemoryEngine(PROGRAMS)
        away.down = True
        yield Engines(MemoryEngine(PROGRAMS), away)
        return
    ray = request.getfixturevalue("ray")
    async with ray_jobs(ray.jobs_url, ray.token) as here, ray_jobs("http://127.0.0.1:1", ray.token) as away:
        yield Engines(RayEngine(here), RayEngine(away))


@pytest.fixture
def job_id() -> str:
    """One that no other test uses."""
    return f"job-{uuid.uuid4().hex}"


async def reaches(engine: Engine, job_id: str, *wanted: EngineState) -> EngineJob:
    async def there() -> Any:
        found = await engine.state(job_id)
        return found if found.state in wanted else None

    found: EngineJob = await eventually(there, within=PATIENT)
    return found


async def printed(engine: Engine, job_id: str, *wanted: str) -> list[str]:
    """The log's lines, once it has those wanted: Ray says things of its own between them, and one in the middle of a line."""

    async def written() -> Any:
        text = (await engine.log(job_id)).decode()
        lines = re.sub(r"Running entrypoint for job .*\n", "", text).splitlines()
        return lines if set(wanted) <= set(lines) else None

    lines: list[str] = await eventually(written, within=PATIENT)
    return lines


def lives(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


async def test_a_job_runs_in_its_environment_and_its_log_is_the_whole_text(
    engines: Engines, job_id: str
) -> None:
    await engines.here.submit(job_id, GREET, {"PART": "day"})
    await reaches(engines.here, job_id, EngineState.SUCCEEDED)
    assert 1 == (await printed(engines.here, job_id, "good day")).count("good day")
    await engines.here.submit(f"{job_id}-2", LONG, {})
    await reaches(engines.here, f"{job_id}-2", EngineState.SUCCEEDED)
    lines = await printed(engines.here, f"{job_id}-2", "rückwärts", "50000")
    assert [str(n) for n in range(1, 50_001)] == [line for line in lines if line.isdecimal()]


async def test_a_command_that_fails_is_a_failed_job_that_says_something(
    engines: Engines, job_id: str
) -> None:
    await engines.here.submit(job_id, FAIL, {})
    failed = await reaches(engines.here, job_id, EngineState.FAILED, EngineState.SUCCEEDED)
    assert EngineState.FAILED == failed.state
    assert failed.message
    await printed(engines.here, job_id, "wrong")


async def test_an_id_that_is_known_is_submitted_once_running_or_ended(engines: Engines, job_id: str) -> None:
    await engines.here.submit(job_id, STAY, {})
    await engines.here.submit(job_id, OTHER, {})
    await reaches(engines.here, job_id, EngineState.RUNNING)
    await printed(engines.here, job_id, "begun")
    await engines.here.stop(job_id)
    await reaches(engines.here, job_id, EngineState.STOPPED)
    await engines.here.submit(job_id, OTHER, {})
    assert EngineState.STOPPED == (await engines.here.state(job_id)).state
    assert "other" not in await printed(engines.here, job_id, "begun")


async def test_a_job_that_has_ended_stays_as_it_ended_when_it_is_stopped(
    engines: Engines, job_id: str
) -> None:
    await engines.here.submit(job_id, OTHER, {})
    await reaches(engines.here, job_id, EngineState.SUCCEEDED)
    await engines.here.stop(job_id)
    assert EngineState.SUCCEEDED == (await engines.here.state(job_id)).state


async def test_a_job_that_was_never_submitted_is_unknown_has_no_log_and_stops_without_a_word(
    engines: Engines, job_id: str
) -> None:
    assert EngineJob(EngineState.UNKNOWN) == await engines.here.state(job_id)
    assert b"" == await engines.here.log(job_id)
    await engines.here.stop(job_id)
    assert EngineJob(EngineState.UNKNOWN) == await engines.here.state(job_id)


async def test_an_engine_that_is_away_is_unavailable_whatever_is_asked(engines: Engines, job_id: str) -> None:
    for call in (
        engines.away.submit(job_id, OTHER, {}),
        engines.away.state(job_id),
        engines.away.stop(job_id),
        engines.away.log(job_id),
    ):
        with pytest.raises(Unavailable) as away:
            await call
        assert "ENGINE_UNAVAILABLE" == away.value.reason


async def test_a_ray_that_hangs_is_unavailable_before_the_deadline_whatever_is_asked(
    ray: Ray, job_id: str
) -> None:
    address = urlsplit(ray.jobs_url)
    assert address.hostname is not None and address.port is not None
    async with (
        FaultProxy(address.hostname, address.port) as proxy,
        ray_jobs(f"http://{proxy.address}", ray.token) as jobs,
    ):
        engine = RayEngine(jobs)
        assert EngineJob(EngineState.UNKNOWN) == await engine.state(job_id)
        proxy.stall()
        for call in (
            lambda: engine.submit(job_id, OTHER, {}),
            lambda: engine.state(job_id),
            lambda: engine.stop(job_id),
            lambda: engine.log(job_id),
        ):
            with budget(1.0):
                with pytest.raises(Unavailable) as hangs:
                    await call()
                left = left_seconds()
            assert "ENGINE_UNAVAILABLE" == hangs.value.reason
            assert left is not None and left > 0
        proxy.heal()
        # Another job: what was asked meanwhile, the stop too, may still reach Ray now.
        await engine.submit(f"{job_id}-after", OTHER, {})
        await reaches(engine, f"{job_id}-after", EngineState.SUCCEEDED)


@pytest.mark.parametrize(
    "engines", ["ray"], indirect=True
)  # in memory there are no processes that could stay
async def test_the_children_of_a_stopped_job_are_gone_when_it_is_stopped(
    engines: Engines, job_id: str
) -> None:
    await engines.here.submit(job_id, "sleep 600 & sleep 600 & echo $$ $!; wait", {})

    async def told() -> list[int]:
        found = re.search(rb"^(\d+) (\d+)$", await engines.here.log(job_id), re.MULTILINE)
        return [int(process) for process in found.groups()] if found else []

    processes = await eventually(told, within=PATIENT)
    assert [True, True] == [lives(process) for process in processes]
    await engines.here.stop(job_id)
    await reaches(engines.here, job_id, EngineState.STOPPED)
    assert [False, False] == [lives(process) for process in processes]
