"""A set of backends, started in parallel, for the platform and the tests."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from flywheel_local import ports as port_numbers
from flywheel_local.backend import Backend
from flywheel_local.failure import LocalError
from flywheel_local.kafka import Kafka
from flywheel_local.postgres import Postgres
from flywheel_local.ray import Ray
from flywheel_local.redis import Redis
from flywheel_local.s3 import S3
from flywheel_local.triton import Triton

_Kind = TypeVar("_Kind", bound=Backend)

KINDS: dict[str, type[Backend]] = {kind.name: kind for kind in (Postgres, Redis, S3, Kafka, Triton, Ray)}


class Backends:
    """Real servers on loopback, one attribute each.

    ``with Backends({"postgres", "redis"}, directory=tmp) as backends: backends.postgres.dsn("postgres")``.
    Without ``ports`` they get free ones. They stop at the end of the block, and when this process ends.
    """

    def __init__(
        self,
        which: Iterable[str] = KINDS,
        *,
        directory: Path,
        log: Path | None = None,
        ports: Mapping[str, int] | None = None,
        durable: bool = True,
    ) -> None:
        self._kinds = [KINDS[name] for name in which]
        self._directory = directory.resolve()
        self._log = (log or directory / "log").resolve()
        wanted = [name for kind in self._kinds for name in kind.port_names]
        given = ports if ports is not None else port_numbers.free(wanted)
        self._all: dict[str, Backend] = {
            kind.name: kind(self._directory, self._log, given) for kind in self._kinds
        }
        if not durable and isinstance(postgres := self._all.get("postgres"), Postgres):
            postgres.durable = False
        self.started_in_seconds = 0.0

    def start(self) -> None:
        """Starts all backends in parallel. If one fails, stops the others and raises its error."""
        began = time.monotonic()
        try:
            self._each("start", list(self._all.values()))
        except BaseException:
            self.stop()
            raise
        self.started_in_seconds = time.monotonic() - began

    def stop(self) -> None:
        self._each("stop", list(self._all.values()))

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._all.values())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def postgres(self) -> Postgres:
        return self._get(Postgres)

    @property
    def redis(self) -> Redis:
        return self._get(Redis)

    @property
    def s3(self) -> S3:
        return self._get(S3)

    @property
    def kafka(self) -> Kafka:
        return self._get(Kafka)

    @property
    def triton(self) -> Triton:
        return self._get(Triton)

    @property
    def ray(self) -> Ray:
        return self._get(Ray)

    def _get(self, kind: type[_Kind]) -> _Kind:
        found = self._all.get(kind.name)
        if not isinstance(found, kind):
            raise LocalError(f"{kind.name} was not requested", f'request it: Backends({{"{kind.name}", …}})')
        return found

    @staticmethod
    def _each(action: str, backends: list[Backend]) -> None:
        if not backends:
            return
        with ThreadPoolExecutor(len(backends)) as pool:
            done = [pool.submit(getattr(backend, action)) for backend in backends]
            try:
                wait(done)
            except BaseException:
                for backend in backends:
                    backend.cancel()
                raise
        problems = [problem for job in done if (problem := job.exception()) is not None]
        if len(problems) == 1:
            raise problems[0]
        if problems:
            raise LocalError("\n".join(str(problem) for problem in problems), "see the remedies above")
