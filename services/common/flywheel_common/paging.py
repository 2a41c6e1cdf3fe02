"""Pagination: opaque page tokens bound to the request that made them, and a clamp for page sizes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flywheel_common.errors import InvalidPageSize, InvalidPageToken

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

Item = TypeVar("Item")
Key = str | int | float | bool | None
"""One part of a sort key."""


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some items and the token of the next page, empty at the end."""

    items: Sequence[Item]
    next_page_token: str = ""


def page_size(requested: int, *, default: int = DEFAULT_PAGE_SIZE, maximum: int = MAX_PAGE_SIZE) -> int:
    """The size to use: 0 means the default, more than the maximum means the maximum (AIP-158)."""
    if requested < 0:
        raise InvalidPageSize(
            f"page_size is {requested}: give 0 for the default of {default}, or a positive number.",
            field="page_size",
        )
    return min(requested or default, maximum)


def encode_token(key: Sequence[Key], *, query: str = "") -> str:
    """A token for "go on after `key`". `query` is whatever must be equal on the next call (parent, filter, order)."""
    body = json.dumps(list(key), separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_digest(body, query) + body).decode().rstrip("=")


def decode_token(token: str, *, query: str = "") -> list[Key] | None:
    """The key in a token; None for the empty token (first page). Raises InvalidArgument INVALID_PAGE_TOKEN
    when the token was changed, made by something else, or made for another query."""
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
            "page_token does not belong to this request: pass the next_page_token of the previous answer with the "
            "same parent and filter, or leave it empty to start again.",
            field="page_token",
        ) from None
    return key


def _digest(body: bytes, query: str) -> bytes:
    return hashlib.sha256(body + b"\0" + query.encode()).digest()[:12]


def cut(rows: Sequence[Item], size: int, key: object, *, query: str = "") -> Page[Item]:
    """A page out of at most `size + 1` rows read: the extra row only says that there is more. `key(row)` is the
    sort key of a row."""
    if len(rows) <= size:
        return Page(rows)
    shown = rows[:size]
    assert callable(key)
    return Page(shown, encode_token(key(shown[-1]), query=query))
