"""Reads production versions for concurrent callers, with one statement for all that wait.

A statement reads only for callers that came before it began. So an answer shows every change that was
committed before its call arrived, at whichever replica, and no cache has to be invalidated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from flywheel_common.deadline import seconds_to_answer
from flywheel_common.postgres.errors import PostgresUnavailable
from flywheel_common.postgres.transactions import Store
from flywheel_registry.models.lookups import unknown_model
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.version import ModelVersion

Answer = TypeVar("Answer")

STATEMENT_SECONDS = 5.0
"""After this time a statement is given up, so that the next callers do not wait for a lost connection."""


class ProductionReads(Generic[Answer]):
    """`run` reads while the service runs; `of` waits for it.

    `to_answer` makes an answer of what was read, once for all callers of one model that share a statement:
    they must not change it.
    """

    def __init__(
        self, store: Store[ModelRecords], to_answer: Callable[[ModelVersion | None], Answer]
    ) -> None:
        self._store = store
        self._to_answer = to_answer
        self._waiting: dict[str, list[asyncio.Future[Answer]]] = {}
        self._woken = asyncio.Event()

    async def of(self, model: str) -> Answer:
        """Return the answer for the version in PRODUCTION, which may be None.

        Raises UnknownModel, and PostgresUnavailable shortly before the deadline of the running call.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.setdefault(model, []).append(answer)
        self._woken.set()
        left = seconds_to_answer()
        if left is None:
            return await answer
        late = loop.call_later(left, _fail, [answer], _no_answer())
        try:
            return await answer
        finally:
            late.cancel()

    async def run(self) -> None:
        """Read for the callers that wait, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            waiting, self._waiting = self._waiting, {}
            try:
                await self._read(waiting)
            except Exception as error:  # noqa: BLE001 - the callers raise it
                _fail([answer for answers in waiting.values() for answer in answers], error)

    async def _read(self, waiting: dict[str, list[asyncio.Future[Answer]]]) -> None:
        try:
            async with asyncio.timeout(STATEMENT_SECONDS), self._store.reading() as records:
                found = await records.production_versions(list(waiting))
        except TimeoutError as error:
            raise _no_answer() from error
        for model, answers in waiting.items():
            if model not in found:
                _fail(answers, unknown_model(model))
                continue
            answer = self._to_answer(found[model])
            for each in answers:
                if not each.done():
                    each.set_result(answer)


def _fail(answers: list[asyncio.Future[Answer]], error: Exception) -> None:
    for answer in answers:
        if not answer.done():
            answer.set_exception(error)


def _no_answer() -> PostgresUnavailable:
    return PostgresUnavailable("The database does not answer now: try again.")
