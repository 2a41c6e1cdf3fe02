"""A long-running process: /metrics page, supervised background tasks, graceful stop on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from prometheus_client import REGISTRY, CollectorRegistry

from flywheel_common.config import ServiceSettings
from flywheel_common.telemetry.logs import get_logger
from flywheel_common.telemetry.metrics import MetricsPage

log = get_logger(__name__)

EXIT_CRASH = 1
EXIT_PORT_TAKEN = 3
EXIT_DEPENDENCY = 4

Work = Callable[[], Awaitable[None]]


class PortTaken(SystemExit):
    """The address cannot be bound; exits with status 3."""

    def __init__(self, address: str, field: str) -> None:
        self.message = (
            f"Cannot listen on {address}: the port is in use or the address is not one of this machine. "
            f"Stop the process that uses it or set {field}."
        )
        super().__init__(EXIT_PORT_TAKEN)

    def __str__(self) -> str:
        return self.message


class BackgroundCrashed(RuntimeError):
    """A background task raised an exception; the process exits with status 1."""


class Worker:
    """A process without gRPC, such as `flywheel-feature materialize`. `Server` is a subclass."""

    def __init__(self, settings: ServiceSettings, *, registry: CollectorRegistry = REGISTRY) -> None:
        self._settings = settings
        self._registry = registry
        self._background: list[tuple[str, Work]] = []
        self._metrics_page: MetricsPage | None = None
        self._stop_requested = asyncio.Event()
        self.metrics_port: int = 0

    def add_background(self, name: str, work: Work) -> None:
        """Runs `work()` as long as the process. If it raises, the process logs the exception, drains and
        exits with status 1. If it returns, nothing happens."""
        self._background.append((name, work))

    def request_stop(self) -> None:
        """Stops the process, as SIGTERM does."""
        self._stop_requested.set()

    async def start(self) -> None:
        """Opens the /metrics page. Raises PortTaken."""
        address = self._settings.metrics_listen
        if address:
            try:
                self._metrics_page = MetricsPage(address, self._registry)
            except OSError:
                raise PortTaken(address, "metrics_listen") from None
            self.metrics_port = self._metrics_page.port

    async def drain(self) -> None:
        """Lets clients switch to other replicas; a process without gRPC has none."""

    async def stop(self) -> None:
        """Closes what `start` opened."""
        if self._metrics_page is not None:
            page, self._metrics_page = self._metrics_page, None
            await asyncio.to_thread(page.close)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def run_until_signal(self) -> None:
        """Starts the process and returns after SIGTERM or SIGINT, when everything has stopped. Raises
        BackgroundCrashed when a background task raised an exception."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        try:
            async with self:
                crashed = await self._supervise()
                await self.drain()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        if crashed is not None:
            raise BackgroundCrashed(crashed)

    async def _supervise(self) -> str | None:
        """Runs until a stop is requested or a task crashes; returns the name of the crashed task. Background
        tasks are cancelled after the drain, because calls may need them."""
        stop = asyncio.create_task(self._stop_requested.wait())
        tasks = {asyncio.create_task(self._run(work), name=name): name for name, work in self._background}
        crashed: str | None = None
        try:
            pending: set[asyncio.Task[object]] = {stop, *tasks}
            while not stop.done() and crashed is None:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stop}:
                    if not task.cancelled() and task.exception() is not None:
                        crashed = task.get_name()
                        log.error("background task crashed", task=crashed, exc_info=task.exception())
            log.info("stopping", crashed=crashed)
            if crashed is None:
                await self.drain()
        finally:
            for task in (stop, *tasks):
                task.cancel()
            await asyncio.gather(stop, *tasks, return_exceptions=True)
        return crashed

    @staticmethod
    async def _run(work: Work) -> None:
        await work()
