"""A long-running process: /metrics page, supervised background tasks, graceful stop on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from prometheus_client import REGISTRY, CollectorRegistry

from flywheel_common.clock import SystemClock
from flywheel_common.config import ServiceSettings
from flywheel_common.process.supervision import (
    RESTARTS,
    BackgroundFailed,
    BackgroundTask,
    RestartRule,
    Supervisor,
    Work,
)
from flywheel_common.telemetry.logs import get_logger
from flywheel_common.telemetry.metrics import MetricsPage, background_failures

log = get_logger(__name__)

EXIT_CRASH = 1
EXIT_PORT_TAKEN = 3
EXIT_DEPENDENCY = 4
CANCEL_SECONDS = 5.0
"""How long cancelled background tasks may take to end before the process exits without them."""


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


class Worker:
    """A process without gRPC, such as `flywheel-feature materialize`. `Server` is a subclass."""

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        registry: CollectorRegistry = REGISTRY,
        restarts: RestartRule = RESTARTS,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._restarts = restarts
        self._background: list[BackgroundTask] = []
        self._metrics_page: MetricsPage | None = None
        self._stop_requested = asyncio.Event()
        self.metrics_port: int = 0

    def add_background(self, name: str, work: Work, *, ends: bool = False, stops_last: bool = False) -> None:
        """Keeps `work()` running as long as the process, by the rule of process/supervision.py. The
        parameters are the fields of BackgroundTask."""
        if name in (task.name for task in self._background):
            raise ValueError(f"two background tasks are named {name!r}")
        self._background.append(BackgroundTask(name, work, ends, stops_last))

    @property
    def background(self) -> Sequence[BackgroundTask]:
        """The declared background tasks."""
        return tuple(self._background)

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
        BackgroundFailed when a background task failed too often.

        In both cases the process first drains and finishes its calls, which may need the background tasks,
        and then cancels these: last those that take work from the others.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        try:
            async with AsyncExitStack() as stack:
                await self.start()
                running: dict[asyncio.Task[None], BackgroundTask] = {}
                stack.push_async_callback(_cancel, running)
                stack.push_async_callback(self.stop)
                failure = await self._run_background(running)
                log.info("stopping", failed=failure and failure.task)
                await self.drain()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        if failure is not None:
            raise failure

    async def _run_background(
        self, running: dict[asyncio.Task[None], BackgroundTask]
    ) -> BackgroundFailed | None:
        """Starts the background tasks, into `running`, and waits for a stop request (None) or for a task that
        failed too often."""
        supervisor = Supervisor(self._restarts, SystemClock(), background_failures(self._registry))
        for each in self._background:
            running[asyncio.create_task(supervisor.keep_running(each), name=each.name)] = each
        stop = asyncio.create_task(self._stop_requested.wait())
        try:
            pending: set[asyncio.Task[object]] = {stop, *running}
            while not stop.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {stop}:
                    error = None if task.cancelled() else task.exception()
                    if isinstance(error, BackgroundFailed):
                        return error
                    if error is not None:
                        raise error
        finally:
            stop.cancel()
        return None


async def _cancel(running: dict[asyncio.Task[None], BackgroundTask]) -> None:
    """Cancels the tasks: those that other tasks hand work to after these have ended."""
    for last in (False, True):
        tasks = {task for task, each in running.items() if each.stops_last == last}
        for task in tasks:
            task.cancel()
        if tasks:
            ended, hanging = await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
            # Their exceptions are in the log; asyncio complains of those that nothing reads.
            await asyncio.gather(*ended, return_exceptions=True)
            if hanging:
                log.error("background tasks do not stop", tasks=sorted(task.get_name() for task in hanging))
