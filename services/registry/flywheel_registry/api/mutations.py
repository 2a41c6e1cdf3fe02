"""Runs the mutating methods: one transaction each, idempotent by request_id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message

from flywheel_common.postgres.transactions import Store
from flywheel_registry.api.convert import check_texts
from flywheel_registry.rollouts.ports import RolloutRecords

Response = TypeVar("Response", bound=Message)


class Mutations:
    """The part of the servicer that all groups of methods share: the store, and how mutations run on it."""

    _store: Store[RolloutRecords]

    async def _mutate(
        self,
        method: str,
        request: Any,
        response: type[Response],
        effect: Callable[[RolloutRecords], Awaitable[Response]],
    ) -> Response:
        """Run `effect` in one transaction with its audit entries, events and stored answer."""
        check_texts(request)

        async def run(records: RolloutRecords) -> bytes:
            return (await effect(records)).SerializeToString()

        body = request.SerializeToString(deterministic=True)
        return response.FromString(await self._store.once(method, request.request_id, body, run))
