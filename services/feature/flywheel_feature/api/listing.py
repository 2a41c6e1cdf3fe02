"""Filters and pages over definitions in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from flywheel_common.paging import Page, cut, decode_token, page_size
from flywheel_feature.api.errors import InvalidFilter

T = TypeVar("T")


def parse_filter(text: str) -> Callable[[Any], bool]:
    """The predicate of a filter: terms joined by ` AND `; an empty filter matches everything.

    `tag:key=value` and `tag:key` (any value) match tags exactly. `owner:name` matches the owner, any other
    text a part of id, description or owner, both regardless of case. Raises InvalidFilter.
    """
    terms = [_term(part.strip()) for part in text.split(" AND ") if part.strip()]
    return lambda item: all(term(item) for term in terms)


def _term(text: str) -> Callable[[Any], bool]:
    field, colon, value = text.partition(":")
    if not colon or field not in ("tag", "owner"):
        wanted = text.lower()
        return lambda item: any(
            wanted in part.lower() for part in (item.id, item.metadata.description, item.metadata.owner)
        )
    key, equals, tag = value.partition("=")
    if not key:
        raise InvalidFilter(
            f"The filter term {text[:80]!r} has no value: "
            "use tag:key=value, tag:key, owner:name or text, joined by AND."
        )
    if field == "owner":
        owner = value.lower()
        return lambda item: bool(item.metadata.owner.lower() == owner)
    if equals:
        return lambda item: bool(item.metadata.tags.get(key) == tag)
    return lambda item: key in item.metadata.tags


def page_of(items: Iterable[T], *, parent: str, text: str, size: int, token: str) -> Page[T]:
    """One page of the matching items by id. Raises InvalidPageToken, InvalidPageSize or InvalidFilter."""
    query = f"{parent}\n{text}"
    after = decode_token(token, query=query)
    wanted = page_size(size, default=100)
    matches = parse_filter(text)
    found: list[Any] = sorted((i for i in items if matches(i)), key=lambda i: i.id)
    if after is not None:
        found = [i for i in found if i.id > str(after[0])]
    return cut(found[: wanted + 1], wanted, lambda i: [i.id], query=query)
