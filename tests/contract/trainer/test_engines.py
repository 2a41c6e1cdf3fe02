"""Contract tests for compute engines: in memory, and Ray."""

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
from flywheel_common.ray.errors import EngineRefused, EngineUnavailable
from flywheel_common.ray.jobs import ray_jobs
from flywheel_local.ray import Ray
from flywheel_trainer.fakes.engine import MemoryEngine
from flywheel_trainer.jobs.engine import Engine, EngineJob, EngineState
from flywheel_trainer.jobs.resources import Node
from flywheel_trainer.store.ray.engine import RayEngine
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy

WITHIN = 60.0
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
    up: Engine
    down: Engine
    """An engine that does not answer."""
    other: Engine
    """The engine of another installation on the same cluster."""


@pytest.fixture(params=["memory", "ray"])
async def engines(request: pytest.FixtureRequest) -> AsyncIterator[Engines]:
    if request.param == "memory":
        down, up = MemoryEngine(PROGRAMS), MemoryEngine(PROGRAMS, owner="one")
        down.down = True
        up.machines = [Node(2.0)]
        yield Engines(up, down, MemoryEngine(PROGRAMS, owner="two", cluster=up.started))
        return
    ray = request.getfixturevalue("ray")
    async with ray_jobs(ray.jobs_url, ray.token) as up, ray_jobs("http://127.0.0.1:1", ray.token) as away:
        yield Engines(RayEngine(up, "one"), RayEngine(away, "one"), RayEngine(up, "two"))


@pytest.fixture
def engine(engines: Engines) -> Engine:
    return engines.up


@pytest.fixture
def job_id() -> str:
    """An id that no other test uses."""
    return f"job-{uuid.uuid4().hex}"


async def reaches(engine: Engine, job_id: str, *states: EngineState) -> EngineJob:
    """Wait until the job is in one of these states."""

    async def reached() -> Any:
        found = await engine.state(job_id)
        return found if found.state in states else None

    found: EngineJob = await eventually(reached, within=WITHIN)
    return found


async def prints(engine: Engine, job_id: str, *expected: str) -> list[str]:
    """The lines of the log once it has the expected ones. Ray writes lines of its own, one even inside of a
    line."""

    async def written() -> Any:
        text = (await engine.log_tail(job_id, 1 << 20)).decode()
        lines = re.sub(r"Running entrypoint for job .*\n", "", text).splitlines()
        return lines if set(expected) <= set(lines) else None

    lines: list[str] = await eventually(written, within=WITHIN)
    return lines


def is_alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


async def test_a_job_gets_its_environment_and_its_log_is_complete(engine: Engine, job_id: str) -> None:
    await engine.submit(job_id, GREET, {"PART": "day"})
    await reaches(engine, job_id, EngineState.SUCCEEDED)
    assert 1 == (await prints(engine, job_id, "good day")).count("good day")
    await engine.submit(f"{job_id}-2", LONG, {})
    await reaches(engine, f"{job_id}-2", EngineState.SUCCEEDED)
    lines = await prints(engine, f"{job_id}-2", "rückwärts", "50000")
    assert [str(n) for n in range(1, 50_001)] == [line for line in lines if line.isdecimal()]


async def test_a_failing_command_is_a_failed_job_with_a_message(engine: Engine, job_id: str) -> None:
    await engine.submit(job_id, FAIL, {})
    failed = await reaches(engine, job_id, EngineState.FAILED, EngineState.SUCCEEDED)
    assert EngineState.FAILED == failed.state
    assert failed.message
    assert (3, False) == (failed.exit_code, failed.machine_lost)
    await prints(engine, job_id, "wrong")
    assert 4 == len(await engine.log_tail(job_id, 4))


async def test_the_jobs_of_an_installation_are_listed_until_they_are_forgotten(
    engines: Engines, job_id: str
) -> None:
    await engines.up.submit(job_id, OTHER, {})
    await reaches(engines.up, job_id, EngineState.SUCCEEDED)
    listed = {job.job_id: job.state for job in await engines.up.jobs()}
    assert EngineState.SUCCEEDED == listed[job_id]
    assert job_id not in [job.job_id for job in await engines.other.jobs()]
    await engines.up.forget(job_id)
    assert job_id not in [job.job_id for job in await engines.up.jobs()]
    assert EngineJob(EngineState.UNKNOWN) == await engines.up.state(job_id)


async def test_the_machines_of_the_cluster_are_known(engine: Engine) -> None:
    async def nodes() -> Any:
        return await engine.nodes()

    (machine,) = await eventually(nodes, within=WITHIN)
    assert (2.0, 0.0, frozenset()) == (machine.cpus, machine.gpus, machine.accelerators)
    assert 2**28 < machine.memory_bytes


async def test_a_known_id_is_not_submitted_again(engine: Engine, job_id: str) -> None:
    await engine.submit(job_id, STAY, {})
    await engine.submit(job_id, OTHER, {})
    await reaches(engine, job_id, EngineState.RUNNING)
    await prints(engine, job_id, "begun")
    await engine.stop(job_id)
    await reaches(engine, job_id, EngineState.STOPPED)
    await engine.submit(job_id, OTHER, {})
    assert EngineState.STOPPED == (await engine.state(job_id)).state
    assert "other" not in await prints(engine, job_id, "begun")


async def test_stopping_an_ended_job_does_not_change_it(engine: Engine, job_id: str) -> None:
    await engine.submit(job_id, OTHER, {})
    await reaches(engine, job_id, EngineState.SUCCEEDED)
    await engine.stop(job_id)
    assert EngineState.SUCCEEDED == (await engine.state(job_id)).state


async def test_an_unknown_job_has_no_log_and_can_be_stopped(engine: Engine, job_id: str) -> None:
    assert EngineJob(EngineState.UNKNOWN) == await engine.state(job_id)
    assert b"" == await engine.log_tail(job_id, 99)
    await engine.stop(job_id)
    await engine.forget(job_id)
    assert EngineJob(EngineState.UNKNOWN) == await engine.state(job_id)


async def test_every_method_raises_unavailable_while_the_engine_is_down(
    engines: Engines, job_id: str
) -> None:
    for call in (
        engines.down.submit(job_id, OTHER, {}),
        engines.down.state(job_id),
        engines.down.stop(job_id),
        engines.down.log_tail(job_id, 99),
        engines.down.jobs(),
        engines.down.forget(job_id),
        engines.down.nodes(),
    ):
        with pytest.raises(EngineUnavailable):
            await call


async def test_a_hanging_ray_is_unavailable_before_the_deadline(ray: Ray, job_id: str) -> None:
    address = urlsplit(ray.jobs_url)
    assert address.hostname is not None
    assert address.port is not None
    async with (
        FaultProxy(address.hostname, address.port) as proxy,
        ray_jobs(f"http://{proxy.address}", ray.token) as jobs,
    ):
        engine = RayEngine(jobs, "one")
        assert EngineJob(EngineState.UNKNOWN) == await engine.state(job_id)
        proxy.stall()
        for call in (
            lambda: engine.submit(job_id, OTHER, {}),
            lambda: engine.state(job_id),
            lambda: engine.stop(job_id),
            lambda: engine.log_tail(job_id, 99),
            engine.jobs,
            engine.nodes,
        ):
            with budget(1.0):
                with pytest.raises(EngineUnavailable):
                    await call()
                left = left_seconds()
            assert left is not None
            assert left > 0
        proxy.heal()
        # Use another job: the requests of the stalled calls, also the stop, may still reach Ray now.
        await engine.submit(f"{job_id}-after", OTHER, {})
        await reaches(engine, f"{job_id}-after", EngineState.SUCCEEDED)


@pytest.mark.parametrize("engines", ["ray"], indirect=True)  # the engine in memory starts no processes
async def test_stopping_a_job_ends_its_child_processes(engine: Engine, job_id: str) -> None:
    await engine.submit(job_id, "sleep 600 & sleep 600 & echo $$ $!; wait", {})

    async def process_ids() -> list[int]:
        found = re.search(rb"^(\d+) (\d+)$", await engine.log_tail(job_id, 1 << 20), re.MULTILINE)
        return [int(process) for process in found.groups()] if found else []

    processes = await eventually(process_ids, within=WITHIN)
    assert [True, True] == [is_alive(process) for process in processes]
    await engine.stop(job_id)
    await reaches(engine, job_id, EngineState.STOPPED)
    assert [False, False] == [is_alive(process) for process in processes]


async def test_a_job_that_ray_refuses_is_not_unavailable(ray: Ray, job_id: str) -> None:
    """A refusal that is reported as an outage would be repeated for ever."""
    async with ray_jobs(ray.jobs_url, ray.token) as jobs:
        with pytest.raises(EngineRefused):
            await RayEngine(jobs, "one").submit(job_id, 3, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("engines", ["ray"], indirect=True)
async def test_a_log_that_is_no_text_delays_nothing(engine: Engine, job_id: str) -> None:
    """Ray answers 500 to a request for a log that is no UTF-8, for ever."""
    await engine.submit(job_id, "printf 'a\\000b\\377c\\n'; kill -9 $$", {})
    failed = await reaches(engine, job_id, EngineState.FAILED)
    assert -9 == failed.exit_code
    assert b"" == await engine.log_tail(job_id, 99)
