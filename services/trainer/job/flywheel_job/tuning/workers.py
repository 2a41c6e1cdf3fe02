"""Runs trials as tasks of one Ray job, whose workers are reused from trial to trial."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import ray
from ray.exceptions import RayError

from flywheel_job import objects
from flywheel_job.driver import execute, failure_of, run_on_ray
from flywheel_job.launch import LaunchSpec
from flywheel_job.outcome import Outcome
from flywheel_job.tuning.driver import Ended, Lost, Reported


class _Gate:
    """Ray actor between the trials, which ask whether they go on, and the driver, which answers."""

    def __init__(self) -> None:
        self._reports: asyncio.Queue[tuple[int, int, float]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[bool]] = {}

    async def report(self, trial: int, step: int, value: float) -> bool:
        """Whether the trial must stop; waits for the driver."""
        self._answers[trial] = asyncio.get_running_loop().create_future()
        await self._reports.put((trial, step, value))
        return await self._answers[trial]

    async def next(self) -> tuple[int, int, float]:
        return await self._reports.get()

    async def answer(self, trial: int, *, stop: bool) -> None:
        self._answers.pop(trial).set_result(stop)


class RayWorkers:
    """`Workers` on the Ray cluster that this process is connected to."""

    def __init__(self, job: str, *, asks: bool) -> None:
        """`asks`: whether trials report values and wait for answers."""
        self.gate = f"gate-of-{job.rsplit('/', 1)[-1]}"
        self._running: dict[Any, int] = {}
        self._actor: Any = None
        self._next: Any = None
        if asks:
            actor = ray.remote(_Gate)
            self._actor = actor.options(name=self.gate, num_cpus=0, max_concurrency=1000).remote()
            self._next = self._actor.next.remote()

    def start(self, number: int, spec: LaunchSpec) -> None:
        needed = spec.resources
        options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0}
        if spec.workers == 1:
            options |= {"num_cpus": needed.cpus, "num_gpus": needed.gpus}
            if needed.memory_bytes:
                options["memory"] = needed.memory_bytes
            if needed.accelerator_type:
                options["accelerator_type"] = needed.accelerator_type
        task = ray.remote(run_trial).options(**options).remote(spec.to_json().decode())
        self._running[task] = number

    def wait(self) -> Reported | Ended | Lost:
        waiting = [*self._running, *([self._next] if self._next is not None else [])]
        [ready], _ = ray.wait(waiting, num_returns=1)
        if ready is self._next or ready == self._next:
            report = Reported(*ray.get(ready))
            self._next = self._actor.next.remote()
            return report
        number = self._running.pop(ready)
        try:
            return Ended(number, Outcome.from_json(ray.get(ready).encode()))
        except RayError as error:
            return Lost(number, str(error).strip()[:2000])

    def answer(self, number: int, *, stop: bool) -> None:
        self._actor.answer.remote(number, stop=stop)


def run_trial(text: str) -> str:
    """The outcome of one trial, as JSON; failures of the code are outcomes too."""
    spec = LaunchSpec.from_json(text.encode())
    store = objects.open_store()
    before = set(sys.modules)
    try:
        outcome = execute(spec, store, run_on_ray if spec.workers > 1 else _run_here)
    except Exception as error:  # noqa: BLE001 - the outcome contains every failure
        outcome = Outcome.failed(failure_of(error))
    finally:
        _forget_source(before)
    return outcome.to_json().decode()


def _run_here(spec: LaunchSpec) -> None:
    """Run the only rank in this process."""
    from flywheel_job.system_use import system_use_reported
    from flywheel_job.worker import call, local_device

    store = objects.open_store()
    with system_use_reported(spec, 0):
        outcome = call(spec.function, spec, store, device=local_device())
    objects.write(store, spec.result_uri, outcome.to_json())


def _forget_source(before: set[str]) -> None:
    """Unload the modules of the source archive, whose state must not reach the next trial."""
    folders = [path for path in sys.path if "flywheel-source-" in path]
    for folder in folders:
        sys.path.remove(folder)
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if any(file.startswith(folder) for folder in folders):
            del sys.modules[name]
