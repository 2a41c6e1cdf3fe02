"""Groups of asyncio tasks."""

from __future__ import annotations

import asyncio
from types import TracebackType


class TaskGroup(asyncio.TaskGroup):
    """asyncio's TaskGroup, but it leaves no request to cancel its own task behind.

    asyncio's leaves one when a task of the group fails while the block waits at its end. With Python 3.11.2,
    a timeout that expires later in the same task then ends it as if it had been cancelled, without
    TimeoutError.
    """

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = self._asked_to_cancel
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            if self._asked_to_cancel and not before:
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()

    @property
    def _asked_to_cancel(self) -> bool:
        """Whether the group has cancelled its own task; what came before the exit, asyncio takes back."""
        return bool(self._parent_cancel_requested)  # type: ignore[attr-defined]
