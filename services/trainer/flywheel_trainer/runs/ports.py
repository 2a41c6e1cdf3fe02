"""The store of runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from flywheel_common.paging import Page
from flywheel_trainer.recipes.outcome import MetricPoint
from flywheel_trainer.runs.run import Experiment, Run, RunName, RunUpdate
from flywheel_trainer.runs.search import Order, Term


class RunStore(Protocol):
    """Keeps runs. Every method is one transaction; times come from the caller.

    `create_*` with a request_id seen before answers the first result, or raises InvalidArgument REQUEST_ID_REUSED
    for another body. `log` keeps the first value of a (key, step), answers how many points were new, and raises
    NotFound UNKNOWN_RUN or FailedPrecondition RUN_ENDED. `expire` ends RUNNING runs without a heartbeat within their
    lease as LOST, counting from `not_before` at the earliest, and answers their names.
    """

    async def create_experiment(
        self, experiment: Experiment, request_id: str, body: bytes, now: datetime
    ) -> Experiment: ...

    async def list_experiments(self, project: str, size: int, token: str) -> Page[Experiment]: ...

    async def create_run(self, run: Run, request_id: str, body: bytes, now: datetime) -> Run: ...

    async def get_run(self, name: RunName) -> Run | None: ...

    async def list_runs(
        self, project: str, terms: Sequence[Term], order: Order | None, size: int, token: str
    ) -> Page[Run]: ...

    async def log(self, name: RunName, points: Sequence[MetricPoint], now: datetime) -> int: ...

    async def points(self, name: RunName, key: str, size: int, token: str) -> Page[MetricPoint]: ...

    async def update(self, name: RunName, update: RunUpdate, now: datetime) -> Run: ...

    async def expire(self, now: datetime, not_before: datetime) -> list[str]: ...
