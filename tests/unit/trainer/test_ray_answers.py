"""What the answers of Ray's Jobs API mean."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from flywheel_common.ray.errors import EngineRefused, EngineUnavailable
from flywheel_common.ray.jobs import ray_jobs
from flywheel_trainer.jobs.engine import EngineJob, EngineState
from flywheel_trainer.store.ray.engine import RayEngine
from tests.support.ports import free_port

Answer = Callable[[int, Any], Any]


@pytest.fixture
async def answers() -> AsyncIterator[Callable[[int, Any], Any]]:
    """Makes an engine whose cluster gives one answer to everything."""
    async with AsyncExitStack() as stack:

        async def engine(status: int, body: Any) -> RayEngine:
            async def handle(_: web.Request) -> web.Response:
                return web.json_response(body, status=status)

            application = web.Application()
            application.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(application)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            port = free_port()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            return RayEngine(await stack.enter_async_context(ray_jobs(f"http://127.0.0.1:{port}", "")), "one")

        yield engine


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refusal_of_a_submission_is_final(answers: Any, status: int) -> None:
    with pytest.raises(EngineRefused, match="no such image"):
        await (await answers(status, "no such image")).submit("job-1-1", "x", {})


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 502, 503])
async def test_an_outage_or_a_wrong_set_up_delays_a_submission(answers: Any, status: int) -> None:
    with pytest.raises(EngineUnavailable):
        await (await answers(status, "not now")).submit("job-1-1", "x", {})


@pytest.mark.parametrize("status", [400, 500])
async def test_a_known_id_is_no_failure(answers: Any, status: int) -> None:
    await (await answers(status, "Job with submission_id job-1-1 already exists")).submit("job-1-1", "x", {})


async def test_an_unknown_status_is_no_end(answers: Any) -> None:
    engine = await answers(200, {"status": "PAUSED", "message": None})
    assert EngineJob(EngineState.UNRECOGNIZED, "PAUSED ") == await engine.state("job-1-1")


@pytest.mark.parametrize(
    ("error_type", "machine_lost"),
    [("JOB_SUPERVISOR_ACTOR_DIED", True), ("JOB_ENTRYPOINT_COMMAND_ERROR", False), (None, False)],
)
async def test_a_lost_machine_is_told_from_a_failed_command(
    answers: Any, error_type: str | None, machine_lost: bool
) -> None:
    body = {"status": "FAILED", "message": "m", "error_type": error_type, "driver_exit_code": 1}
    assert EngineJob(EngineState.FAILED, "m", 1, machine_lost) == await (await answers(200, body)).state("j")
