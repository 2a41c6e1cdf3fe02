"""Page sizes, and page tokens that are bound to their request."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_common.errors import InvalidArgument
from flywheel_common.paging import cut, decode_token, encode_token, page_size

KEYS = st.lists(st.one_of(st.text(), st.integers(), st.booleans(), st.none()), min_size=1, max_size=4)


@given(KEYS, st.text())
def test_a_token_decodes_to_its_key(key: list[str | int | None], query: str) -> None:
    assert decode_token(encode_token(key, query=query), query=query) == key


def test_an_empty_token_is_the_first_page() -> None:
    assert decode_token("") is None


@given(st.text(max_size=60))
def test_invalid_tokens_are_refused(token: str) -> None:
    if token:
        with pytest.raises(InvalidArgument, match="next_page_token"):
            decode_token(token)


def test_a_changed_token_is_refused() -> None:
    token = encode_token(["model-7", 42], query="projects/default")
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1
        with pytest.raises(InvalidArgument):
            decode_token(
                base64.urlsafe_b64encode(bytes(changed)).decode().rstrip("="), query="projects/default"
            )


def test_a_token_of_another_query_is_refused() -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_token(encode_token(["a"], query="projects/one"), query="projects/two")
    assert caught.value.reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize(("requested", "used"), [(0, 50), (1, 1), (50, 50), (1000, 1000), (5000, 1000)])
def test_page_sizes_are_clamped(requested: int, used: int) -> None:
    assert page_size(requested) == used


def test_negative_page_sizes_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        page_size(-1)


def test_pages_cover_everything_once() -> None:
    rows = list(range(10))
    seen: list[int] = []
    token = ""
    for _ in range(10):
        key = decode_token(token, query="q")
        after = rows if key is None else [r for r in rows if r > int(str(key[0]))]
        page = cut(after[:4], 3, lambda r: [r], query="q")
        seen += page.items
        token = page.next_page_token
        if not token:
            break
    assert seen == rows
