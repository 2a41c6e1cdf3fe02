"""Experiment tracking: experiments, runs and their metrics, and the lease that makes a silent run LOST."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flywheel_common.clock import Clock
from flywheel_common.errors import InvalidArgument
from flywheel_common.ids import Ids
from flywheel_common.names import check_id
from flywheel_common.paging import Page
from flywheel_trainer.recipes.outcome import MetricPoint
from flywheel_trainer.runs.errors import unknown_run
from flywheel_trainer.runs.ports import RunStore
from flywheel_trainer.runs.run import Experiment, Run, RunName, RunState, RunUpdate
from flywheel_trainer.runs.search import Order, Term

MAX_POINTS = 100_000
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@/{}=,-]{0,199}")


class Runs:
    """Use cases of tracking."""

    def __init__(self, store: RunStore, ids: Ids, clock: Clock) -> None:
        self._store, self._ids, self._clock = store, ids, clock
        self._since = clock.now()

    async def create_experiment(self, experiment: Experiment, request_id: str, body: bytes) -> Experiment:
        """An equal experiment that exists is answered; AlreadyExists EXPERIMENT_EXISTS for a different one."""
        check_id(experiment.name.experiment, "experiment_id")
        return await self._store.create_experiment(experiment, request_id, body, self._clock.now())

    async def create_run(self, run: Run, project: str, request_id: str, body: bytes) -> Run:
        """Starts a run under a new id. NotFound UNKNOWN_EXPERIMENT; InvalidArgument for a lease below one second."""
        if run.lease_seconds < 1:
            raise InvalidArgument("lease must be at least one second.", reason="INVALID_LEASE", field="lease")
        named = Run(**{**run.__dict__, "name": RunName(project, f"run-{self._ids.new()}")})
        return await self._store.create_run(named, request_id, body, self._clock.now())

    async def get(self, name: RunName) -> Run:
        """Raises NotFound UNKNOWN_RUN."""
        run = await self._store.get_run(name)
        if run is None:
            raise unknown_run(name)
        return run

    async def log_metrics(
        self,
        name: RunName,
        keys: Sequence[str],
        steps: Sequence[int],
        values: Sequence[float],
        times: Sequence[int],
    ) -> int:
        """Store points given in columns of equal length; answers how many were new."""
        if not len(keys) == len(steps) == len(values) == len(times):
            raise InvalidArgument(
                f"keys, steps, values and times must be equally long, not {len(keys)}, {len(steps)}, {len(values)}, {len(times)}.",
                reason="UNEQUAL_COLUMNS",
            )
        if len(keys) > MAX_POINTS:
            raise InvalidArgument(
                f"At most {MAX_POINTS} points a call; got {len(keys)}.", reason="TOO_MANY_POINTS"
            )
        for key in set(keys):
            if _KEY.fullmatch(key) is None:
                raise InvalidArgument(
                    f"Metric key {key[:80]!r} must match {_KEY.pattern}.", reason="INVALID_METRIC_KEY"
                )
        points = [MetricPoint(*point) for point in zip(keys, steps, values, times, strict=True)]
        return await self._store.log(name, points, self._clock.now())

    async def points(self, name: RunName, key: str, size: int, token: str) -> Page[MetricPoint]:
        await self.get(name)
        return await self._store.points(name, key, size, token)

    async def update(self, name: RunName, update: RunUpdate) -> Run:
        """Heartbeat, additions, and the end when a state is given. FailedPrecondition RUN_ENDED."""
        if update.state is RunState.RUNNING or update.state is RunState.LOST:
            raise InvalidArgument(
                "A run is ended as SUCCEEDED, FAILED or CANCELLED; leave state unset for a heartbeat.",
                reason="INVALID_STATE",
            )
        return await self._store.update(name, update, self._clock.now())

    async def list_experiments(self, project: str, size: int, token: str) -> Page[Experiment]:
        return await self._store.list_experiments(project, size, token)

    async def list_runs(
        self, project: str, terms: Sequence[Term], order: Order | None, size: int, token: str
    ) -> Page[Run]:
        return await self._store.list_runs(project, terms, order, size, token)

    async def expire_silent(self) -> list[str]:
        """Mark runs LOST. A lease counts from the start of this process at the earliest: while it was away nobody
        could have been heard."""
        return await self._store.expire(self._clock.now(), self._since)
