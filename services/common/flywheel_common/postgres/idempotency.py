"""Idempotent mutations: a repeat with the same request_id and body gets the first response, without a second
effect.

async with transaction(pool) as conn, idempotent(conn, "CreateModel", request_id, body) as once:
    if once.replay is not None:
        return Model.FromString(once.replay)
    model = …effect on conn…
    once.store(model.SerializeToString())
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from google.protobuf.message import Message

from flywheel_common.context import current_principal
from flywheel_common.postgres.errors import InvalidRequestId, RequestIdReused
from flywheel_common.postgres.pool import Connection, Pool, Translation, connection, transaction

M = TypeVar("M", bound=Message)

MAX_REQUEST_ID = 200

_TAKE = """
INSERT INTO idempotent_request (scope, method, request_id, body_sha256) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING RETURNING true
"""
_READ = """
SELECT body_sha256, response FROM idempotent_request WHERE scope = $1 AND method = $2 AND request_id = $3
"""
_STORE = "UPDATE idempotent_request SET response = $4 WHERE scope = $1 AND method = $2 AND request_id = $3"
_TRIM = "DELETE FROM idempotent_request WHERE created_at < now() - $1 * interval '1 day'"


class Once:
    """`replay` is the first response; None in the first call, which must `store` its response."""

    __slots__ = ("replay", "response")

    def __init__(self, replay: bytes | None) -> None:
        self.replay = replay
        self.response: bytes | None = None

    def store(self, response: bytes) -> None:
        """Sets the response that repeats will get."""
        self.response = response


@asynccontextmanager
async def idempotent(
    conn: Connection, method: str, request_id: str, body: bytes | Message, *, scope: str | None = None
) -> AsyncIterator[Once]:
    """Use inside the transaction (read committed) of the effect.

    Concurrent equal calls wait for the first one to commit; if it rolls back, the next one runs. Without a
    request_id the call is not idempotent. `scope` defaults to the caller, so that no caller reads the
    responses of another. Raises RequestIdReused for another body and InvalidRequestId.
    """
    if not request_id:
        yield Once(None)
        return
    if len(request_id) > MAX_REQUEST_ID:
        raise InvalidRequestId(f"request_id is longer than {MAX_REQUEST_ID} characters.")
    data = body if isinstance(body, bytes) else body.SerializeToString(deterministic=True)
    digest = hashlib.sha256(data).digest()
    key = (current_principal().subject if scope is None else scope, method, request_id)
    if not await conn.fetchval(_TAKE, *key, digest):
        row = await conn.fetchrow(_READ, *key)
        if row["body_sha256"] != digest:
            raise RequestIdReused(
                f"request_id {request_id!r} was used for another {method} request: use a new id.",
                request_id=request_id,
            )
        yield Once(row["response"])
        return
    once = Once(None)
    yield once
    if once.response is None:
        raise RuntimeError(f"{method}: an idempotent effect must store its response")
    await conn.execute(_STORE, *key, once.response)


class Idempotency:
    """Runs mutations in a transaction: either the effect, or the stored response of an earlier call."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def run(
        self,
        method: str,
        request_id: str,
        request: Message | bytes,
        response_type: type[M],
        effect: Callable[[Connection], Awaitable[M]],
        *,
        translate: Translation | None = None,
        scope: str | None = None,
    ) -> M:
        """The response of `effect(conn)`, or the first response for a repeat. The effect must use only
        `conn`: a second connection could exhaust the pool while 100 repeats wait for this one."""
        async with (
            transaction(self._pool, translate=translate) as conn,
            idempotent(conn, method, request_id, request, scope=scope) as once,
        ):
            if once.replay is not None:
                return response_type.FromString(once.replay)
            response = await effect(conn)
            once.store(response.SerializeToString())
        return response

    async def trim(self, older_than_days: float = 7.0) -> None:
        """Deletes old responses; a later repeat counts as a new request."""
        async with connection(self._pool) as conn:
            await conn.execute(_TRIM, older_than_days)
