"""A trainer over adapters in memory that can be stopped and started again, on a loop of its own."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from prometheus_client import CollectorRegistry

from flywheel.event_loop import LoopThread
from flywheel_common.clock import SystemClock
from flywheel_common.grpc.server import Server
from flywheel_common.ids import SystemIds
from flywheel_trainer.fakes.runs import MemoryRuns
from flywheel_trainer.server import wire
from tests.support.servers.trainer import memory_ports, memory_settings


class RestartedTrainer:
    """Keeps its data while it is stopped; its methods block. `settings` are those of the trainer."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self.ports = memory_ports()
        self._loop = LoopThread()
        self._stack: AsyncExitStack | None = None
        self._listen = "127.0.0.1:0"

    @property
    def address(self) -> str:
        """host:port."""
        return self._listen

    @property
    def runs(self) -> MemoryRuns:
        """Its store of runs."""
        runs = self.ports.runs
        assert isinstance(runs, MemoryRuns)
        return runs

    def start(self) -> None:
        self._loop.run(self._start())

    def stop(self) -> None:
        """Stop serving; does nothing while stopped."""
        self._loop.run(self._stop())

    def close(self) -> None:
        self.stop()
        self._loop.close()

    async def _start(self) -> None:
        self._stack = AsyncExitStack()
        server: Server = await wire(
            memory_settings(listen=self._listen, **self._settings),
            self._stack,
            self.ports,
            clock=SystemClock(),
            ids=SystemIds(),
            prometheus=CollectorRegistry(),
        )
        await server.start()
        server.health.set_ready()
        self._stack.push_async_callback(server.stop)
        self._listen = f"127.0.0.1:{server.port}"

    async def _stop(self) -> None:
        if self._stack is not None:
            await self._stack.aclose()
            self._stack = None
