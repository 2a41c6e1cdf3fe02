"""The context of the running call: deadline, caller, trace. Tasks that a call starts inherit it.

One context variable holds everything, because each `set` costs time on the hot path.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from copy import copy

ROLE_ANY = "*"


class Principal:
    """An authenticated caller."""

    __slots__ = ("roles", "subject")

    def __init__(self, subject: str, roles: frozenset[str] = frozenset()) -> None:
        self.subject = subject
        self.roles = roles

    def __repr__(self) -> str:
        return f"Principal({self.subject!r}, roles={sorted(self.roles)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Principal) and (self.subject, self.roles) == (other.subject, other.roles)

    def __hash__(self) -> int:
        return hash((self.subject, self.roles))


ANONYMOUS = Principal("anonymous", frozenset({ROLE_ANY}))


class Call:
    """One running call or background task. `deadline` is a time of the monotonic clock, None = unbounded;
    `traceparent` is W3C text or empty; `actor` is used only for audit entries. `metadata`: as the caller sent
    it; reading it from gRPC again would convert it again."""

    __slots__ = ("actor", "deadline", "metadata", "method", "principal", "request_id", "traceparent")

    def __init__(
        self,
        method: str = "",
        principal: Principal = ANONYMOUS,
        actor: str = "",
        deadline: float | None = None,
        traceparent: str = "",
        request_id: str = "",
    ) -> None:
        self.method = method
        self.principal = principal
        self.actor = actor
        self.deadline = deadline
        self.traceparent = traceparent
        self.request_id = request_id
        self.metadata: Sequence[tuple[str, str | bytes]] = ()


current_call: ContextVar[Call | None] = ContextVar("flywheel_call", default=None)


def current_principal() -> Principal:
    """The caller; `ANONYMOUS` outside a call and in open mode."""
    call = current_call.get()
    return call.principal if call is not None else ANONYMOUS


def actor() -> str:
    """The name for audit entries: the authenticated subject, or in open mode the name that the client
    sends."""
    call = current_call.get()
    return (call.actor or call.principal.subject) if call is not None else "system"


def call_metadata() -> Sequence[tuple[str, str | bytes]]:
    """The metadata that the caller sent; empty outside a call."""
    call = current_call.get()
    return call.metadata if call is not None else ()


def current_traceparent() -> str:
    """The W3C traceparent of the running call, or empty."""
    call = current_call.get()
    return call.traceparent if call is not None else ""


def left_seconds() -> float | None:
    """Seconds left of the budget of the running call (may be negative); None without a deadline."""
    call = current_call.get()
    if call is None or call.deadline is None:
        return None
    return call.deadline - time.monotonic()


def keep_back(seconds: float) -> None:
    """Shortens the budget of the running call for the current task and the tasks that it starts."""
    call = current_call.get()
    if call is not None and call.deadline is not None:
        shorter = copy(call)
        shorter.deadline = call.deadline - seconds
        current_call.set(shorter)
