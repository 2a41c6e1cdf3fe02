"""Filters and pages over definitions held in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from flywheel_common.paging import Page, cut, decode_token, page_size
from flywheel_feature.definitions import Metadata

T = TypeVar("T")


def matches(item: Any, text: str) -> bool:
    """`tag:key=value`, or text in the id, description or owner, in any case; empty: everything."""
    metadata: Metadata = item.metadata
    if text.startswith("tag:"):
        key, _, value = text.removeprefix("tag:").partition("=")
        return metadata.tags.get(key) == value
    lowered = text.lower()
    return any(lowered in part.lower() for part in (item.id, metadata.description, metadata.owner))


def page_of(items: Iterable[T], *, parent: str, text: str, size: int, token: str) -> Page[T]:
    """One page by id. Raises InvalidArgument INVALID_PAGE_TOKEN, INVALID_PAGE_SIZE."""
    query = f"{parent}\n{text}"
    after = decode_token(token, query=query)
    wanted = page_size(size, default=100)
    found: list[Any] = sorted((i for i in items if matches(i, text)), key=lambda i: i.id)
    if after is not None:
        found = [i for i in found if i.id > str(after[0])]
    return cut(found[: wanted + 1], wanted, lambda i: [i.id], query=query)
