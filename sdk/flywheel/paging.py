"""Reading of List calls page by page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

PAGE_SIZE = 1000


@dataclass(frozen=True)
class Listing:
    """The items that were read, and whether the server has more."""

    items: list[Any]
    more: bool


async def list_items(
    method: Callable[[Any], Awaitable[Any]], request: Message, field: str, limit: int | None = None
) -> Listing:
    """The items of a List call, at most `limit` (None: all). `field` holds the items in the response."""
    items: list[Any] = []
    page: Any = type(request)()
    page.CopyFrom(request)
    while limit is None or len(items) < limit:
        page.page_size = PAGE_SIZE if limit is None else min(limit - len(items), PAGE_SIZE)
        answer = await method(page)
        items += getattr(answer, field)
        page.page_token = answer.next_page_token
        if not answer.next_page_token:
            return Listing(items, more=False)
    return Listing(items, more=True)
