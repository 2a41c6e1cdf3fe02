"""Redis replies with values of one length, against hiredis, for every split into packets."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import hiredis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel_feature.encoding.same_length_values import SameLengthReply, SameLengthValues
from flywheel_feature.store.redis.connection import _Link


def reply(values: list[bytes | None]) -> bytes:
    parts = [b"$-1\r\n" if v is None else b"$%d\r\n%b\r\n" % (len(v), v) for v in values]
    return b"*%d\r\n%b" % (len(values), b"".join(parts))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(p % (len(data) + 1) for p in places)})
    return [data[a:b] for a, b in pairwise(at)]


# Values that look like RESP headers could be mistaken for them.
like_headers = st.sampled_from(
    [b"$3\r\n", b"$-1\r\n", b"\r\n$3", b"abc", b"abcd", b"$", b"", b"$3\r\nabc\r\n"]
)
values = st.lists(st.one_of(st.none(), like_headers, st.binary(max_size=5)), min_size=1, max_size=12)
equal = st.lists(st.binary(min_size=3, max_size=3), min_size=1, max_size=12)
places = st.lists(st.integers(0, 400), max_size=6)


@settings(max_examples=500, deadline=None)
@given(replies=st.lists(st.one_of(values, equal), min_size=1, max_size=4), places=places)
def test_every_reply_is_parsed_as_by_hiredis(replies: list[list[bytes | None]], places: list[int]) -> None:
    async def answered() -> list[Any]:
        link = _Link()
        futures = [link.send(b"", len(r)) for r in replies]
        link._out.clear()
        for data in cut(b"".join(map(reply, replies)) + reply([b"more"])[:3], places):
            link.data_received(data)
        assert all(f.done() for f in futures), "a complete reply was not answered"
        return [list(f.result()) for f in futures]

    reader = hiredis.Reader()
    reader.feed(b"".join(map(reply, replies)))
    assert [reader.gets() for _ in replies] == asyncio.run(answered())


@settings(max_examples=300, deadline=None)
@given(rows=equal, places=places)
def test_values_of_one_length_are_not_copied(rows: list[bytes], places: list[int]) -> None:
    collected = SameLengthReply(len(rows))
    for data in cut(reply(list(rows)), places):
        assert not collected.complete
        assert collected.add(data)
    assert collected.complete
    assert collected.rest == b""
    found = collected.values
    assert rows == list(found)
    assert rows[::-1] == list(found[::-1])
    assert rows[1:3] == list(found[1:3])
    assert rows[-1] == found[-1]
    assert [list(r) for r in rows] == found.matrix.tolist()
    with pytest.raises(IndexError):
        found[len(rows)]


def test_an_error_reply_is_left_to_the_parser() -> None:
    assert not SameLengthReply(3).add(b"-LOADING Redis is loading\r\n")
    assert not SameLengthReply(3).add(b"*4\r\n$1\r\n")
    assert not SameLengthReply(3).add(b"*3\r\n:1\r\n")


def test_a_slice_shares_memory() -> None:
    values = SameLengthValues(bytearray(b"..ab--cd--ef"), 2, 2, 4, 3)
    assert [b"ab", b"cd", b"ef"] == list(values)
    assert np.shares_memory(values.matrix, values[1:].matrix)
