"""Accepts the tokens of attempts beside those of people and services."""

from __future__ import annotations

from flywheel_common.context import Principal, current_principal
from flywheel_common.granted.tokens import ATTEMPT, PREFIX, AttemptTokens
from flywheel_common.grpc.auth import Authenticator

_SUBJECT = "attempt:"


class WithAttemptTokens:
    """`Authenticator` that knows tokens of attempts, and leaves all others to another authenticator."""

    def __init__(self, others: Authenticator, tokens: AttemptTokens) -> None:
        self._others, self._tokens = others, tokens
        self.open = others.open

    async def authenticate(self, authorization: str) -> Principal:
        token = authorization.removeprefix("Bearer ")
        if token.startswith(f"{PREFIX}."):
            engine_id = self._tokens.verify(token)
            if engine_id is not None:
                return Principal(_SUBJECT + engine_id, ATTEMPT)
        return await self._others.authenticate(authorization)


def current_attempt() -> str:
    """The engine id of the attempt that calls, or an empty string for other callers."""
    subject = current_principal().subject
    return subject.removeprefix(_SUBJECT) if current_principal().roles == ATTEMPT else ""
