"""Pagination: page sizes, and opaque page tokens that are bound to their request."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flywheel_common.errors import InvalidPageSize, InvalidPageToken

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

Item = TypeVar("Item")
Key = str | int | float | bool | None
"""A part of a sort key."""


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Items and the token of the next page; the token is empty on the last page."""

    items: Sequence[Item]
    next_page_token: str = ""


def page_size(requested: int, *, default: int = DEFAULT_PAGE_SIZE, maximum: int = MAX_PAGE_SIZE) -> int:
    """The page size: 0 = the default, more than the maximum = the maximum (AIP-158). Raises
    InvalidPageSize."""
    if requested < 0:
        raise InvalidPageSize(
            f"page_size is {requested}: give 0 for the default of {default}, or a positive number.",
            field="page_size",
        )
    return min(requested or default, maximum)


def encode_token(key: Sequence[Key], *, query: str = "") -> str:
    """The token of the page after `key`. `query` holds what must be equal in the next call (parent, filter,
    order)."""
    body = json.dumps(list(key), separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_digest(body, query) + body).decode().rstrip("=")


def decode_token(token: str, *, query: str = "") -> list[Key] | None:
    """The key in a token; None for an empty token (first page). Raises InvalidPageToken when the token was
    changed or was issued for another query."""
    if not token:
        return None
    try:
        raw = base64.b64decode(
            token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True
        )
        digest, body = raw[:12], raw[12:]
        if digest != _digest(body, query):
            raise ValueError
        key: list[Key] = json.loads(body)
    except ValueError:
        raise InvalidPageToken(
            "page_token does not belong to this request: pass the next_page_token of the previous response "
            "with the same parent and filter, or leave it empty to start again.",
            field="page_token",
        ) from None
    return key


def _digest(body: bytes, query: str) -> bytes:
    return hashlib.sha256(body + b"\0" + query.encode()).digest()[:12]


def cut(
    rows: Sequence[Item], size: int, key: Callable[[Item], Sequence[Key]], *, query: str = ""
) -> Page[Item]:
    """A page of at most `size + 1` rows that were read: the extra row shows that there is a next page.
    `key(row)` is the sort key of a row."""
    if len(rows) <= size:
        return Page(rows)
    shown = rows[:size]
    return Page(shown, encode_token(key(shown[-1]), query=query))
