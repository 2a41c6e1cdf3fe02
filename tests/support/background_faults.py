"""Unexpected exceptions in the background tasks of a server, raised by its ports.

`Faults.wrap` puts a proxy around every port. A call that a background task makes, directly or in a child
task, raises RuntimeError: the first call, then the second one after that, then the third one after that. So
each task fails at several places. `Faults.overcome` waits until every task has failed and called its ports
again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import fields, replace
from typing import Any, TypeVar

from flywheel_common.process.worker import Worker
from tests.support.eventually import eventually

P = TypeVar("P")

FAULTS = 3
"""The most faults per task."""

_task: ContextVar[str] = ContextVar("task", default="")


class Faults:
    """The faults of one server."""

    def __init__(self) -> None:
        self.raised: Counter[str] = Counter()
        """By background task."""
        self.calls: Counter[str] = Counter()
        """Calls since the last fault, by background task."""

    def wrap(self, ports: P) -> P:
        """The dataclass of ports with a proxy around each port that is not None."""
        proxies = {
            field.name: self.proxy(port)
            for field in fields(ports)
            if (port := getattr(ports, field.name)) is not None
        }
        return replace(ports, **proxies)

    def proxy(self, port: Any) -> Any:
        """A proxy of one port, or of each port of a list."""
        if isinstance(port, list):
            return [self.proxy(each) for each in port]
        return _Proxy(port, self._on_call)

    def watch(self, server: Worker, *, without_ports: Sequence[str] = ()) -> None:
        """Makes the background tasks of the server known; before it starts. Tasks that call no port cannot
        be made to fail."""
        server._background = [replace(task, work=_named(task.name, task.work)) for task in server._background]
        self._names = [task.name for task in server.background if task.name not in without_ports]

    async def overcome(
        self, stimulate: Callable[[], Awaitable[object]] | None = None, *, within: float = 30.0
    ) -> None:
        """Waits until every background task has failed and has called a port after its last fault."""

        async def all_tasks_work() -> bool:
            if stimulate is not None:
                await stimulate()
            waiting = [name for name in self._names if not (self.raised[name] and self.calls[name])]
            assert not waiting, f"without a fault, or without work after it: {waiting}"
            return True

        # A stimulus is work of its own, such as a push.
        await eventually(all_tasks_work, within=within, every=0.1 if stimulate else 0.02)

    def _on_call(self) -> None:
        name = _task.get()
        if not name:
            return
        if self.raised[name] < FAULTS and self.calls[name] == self.raised[name]:
            self.raised[name] += 1
            self.calls[name] = 0
            raise RuntimeError(f"injected into {name}")
        self.calls[name] += 1


class _Proxy:
    """Calls `on_call` before each call of the port or of its methods."""

    def __init__(self, port: Any, on_call: Callable[[], None]) -> None:
        self._port = port
        self._on_call = on_call

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        if isinstance(found, _Proxy):
            return found  # a port of a port
        return self._counted(found) if callable(found) and not name.startswith("_") else found

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._counted(self._port)(*arguments, **options)

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._on_call()
            return method(*arguments, **options)

        return call


def _named(name: str, work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def named() -> None:
        _task.set(name)
        await work()

    return named
