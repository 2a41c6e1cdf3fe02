"""The synchronous client: every call of `Client` under the same name, safe in notebooks.

    client = fw.connect()
    client.predict("late", {"carrier": "UA"})
    for run in client.search_runs("metrics.auc>0.7"):
        ...

It has no list of methods: `Blocking` wraps an object of any kind, and runs its calls on an event loop in a
thread.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self

from flywheel.client import Client
from flywheel.connection import Service
from flywheel.event_loop import LoopThread


class Blocking:
    """An object whose asynchronous methods block: coroutines return their results, and asynchronous iterators
    are iterators."""

    def __init__(self, target: Any, loop: LoopThread) -> None:
        self._target, self._loop = target, loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if isinstance(found, Service):
            return Blocking(found, self._loop)
        return self._blocking(found) if callable(found) else found

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._target)})

    def _blocking(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **options: Any) -> Any:
            # The call itself also runs on the loop: gRPC makes its objects for the loop that runs.
            return self._plain(self._loop.run(_started(method, arguments, options)))

        return call

    def _plain(self, result: Any) -> Any:
        if isinstance(result, AsyncIterator) or (hasattr(result, "__aiter__") and not callable(result)):
            return self._iterate(result)
        return result

    def _iterate(self, items: Any) -> Iterator[Any]:
        iterator = aiter(items)
        try:
            while True:
                item = self._loop.run(_next(iterator))
                if item is _END:
                    return
                yield item
        finally:
            close = getattr(iterator, "aclose", None) or getattr(items, "cancel", None)
            if close is not None:
                self._loop.run(_started(close, (), {}))


_END = object()


async def _next(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator, _END)


async def _started(method: Callable[..., Any], arguments: Any, options: Any) -> Any:
    result = method(*arguments, **options)
    # A streaming call of gRPC can be awaited as well as iterated: its items are wanted.
    if isinstance(result, Awaitable) and not hasattr(result, "__aiter__"):
        return await result
    return result


class SyncClient(Blocking):
    """Use as `with fw.connect() as client:`, or call `close`."""

    def __init__(self, project: str = "default", **options: Any) -> None:
        super().__init__(Client(project, **options), LoopThread())
        try:
            self._loop.run(self._target.__aenter__())
        except BaseException:
            self._loop.close()
            raise

    def close(self) -> None:
        """Close the channels."""
        self._loop.run(self._target.__aexit__(None, None, None))
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def connect(project: str = "default", **options: Any) -> SyncClient:
    """A synchronous client with the arguments of `Client`."""
    return SyncClient(project, **options)
