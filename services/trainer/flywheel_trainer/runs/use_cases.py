"""Use cases of experiments and runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flywheel_common.clock import Clock
from flywheel_common.ids import Ids
from flywheel_common.names import check_id
from flywheel_common.paging import Page
from flywheel_job.outcome import MetricPoint
from flywheel_trainer.runs.errors import InvalidLease, InvalidState, UnknownRun
from flywheel_trainer.runs.filter_expression import Condition
from flywheel_trainer.runs.limits import check_run, check_update
from flywheel_trainer.runs.metric_points import LoggedPoints, metric_points
from flywheel_trainer.runs.ports import RunStore
from flywheel_trainer.runs.run import Experiment, Run, RunName, RunState, RunUpdate
from flywheel_trainer.runs.search import Order


class Runs:
    """Creates, reads and updates experiments and runs."""

    def __init__(self, store: RunStore, ids: Ids, clock: Clock) -> None:
        self._store, self._ids, self._clock = store, ids, clock

    async def create_experiment(self, experiment: Experiment, request_id: str, body: bytes) -> Experiment:
        """Create an experiment, or return an equal existing one. Raises ExperimentExists."""
        check_id(experiment.name.experiment, "experiment_id")
        return await self._store.create_experiment(experiment, request_id, body, self._clock.now())

    async def list_experiments(self, project: str, size: int, token: str) -> Page[Experiment]:
        return await self._store.list_experiments(project, size, token)

    async def create_run(self, run: Run, project: str, request_id: str, body: bytes) -> Run:
        """Start a run under a new name. Raises UnknownExperiment, InvalidLease."""
        name = RunName(project, f"run-{self._ids.new()}")
        return await self.create_named_run(replace(run, name=name), request_id, body)

    async def create_named_run(self, run: Run, request_id: str, body: bytes) -> Run:
        """Start a run whose name the caller has chosen. Raises RunExists, UnknownExperiment, InvalidLease."""
        if not run.lease_seconds >= 1:
            raise InvalidLease("lease must be at least one second.", field="lease")
        now = self._clock.now()
        check_id(run.name.run, "run_id")
        check_run(run, now)
        return await self._store.create_run(run, request_id, body, now)

    async def get(self, name: RunName) -> Run:
        """Raises UnknownRun."""
        run = await self._store.get_run(name)
        if run is None:
            raise UnknownRun.of(name)
        return run

    async def list_runs(
        self,
        project: str,
        conditions: Sequence[Condition],
        order: Order | None,
        size: int,
        token: str,
        *,
        show_deleted: bool = False,
    ) -> Page[Run]:
        return await self._store.list_runs(project, conditions, order, size, token, show_deleted=show_deleted)

    async def log_metrics(
        self,
        name: RunName,
        keys: Sequence[str],
        steps: Sequence[int],
        values: Sequence[float],
        times: Sequence[int],
        attempt: str = "",
        generation: int = 0,
    ) -> LoggedPoints:
        """Store points given in columns of equal length; `attempt` is the engine id of the sending
        attempt."""
        points = metric_points(keys, steps, values, times)
        return await self._store.log(name, points, self._clock.now(), attempt, generation)

    async def points(self, name: RunName, key: str, size: int, token: str) -> Page[MetricPoint]:
        """Raises UnknownRun."""
        await self.get(name)
        return await self._store.points(name, key, size, token)

    async def update(
        self, name: RunName, update: RunUpdate, request_id: str = "", body: bytes = b""
    ) -> tuple[Run, list[str]]:
        """Record a heartbeat and the additions, and end the run if a state is given. Raises RunEnded.

        Also returns the params that were ignored because the run has another value of them.
        """
        if update.state is RunState.RUNNING or update.state is RunState.LOST:
            raise InvalidState(
                "state must be SUCCEEDED, FAILED or CANCELLED to end the run, or unset for a heartbeat."
            )
        now = self._clock.now()
        check_update(update, now)
        run = await self._store.update(name, update, now, request_id, body)
        return run, sorted(key for key, value in update.params.items() if run.params[key] != value)
