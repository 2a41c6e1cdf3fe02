"""Keys that are encoded together equal keys that are encoded one by one."""

from __future__ import annotations

import hiredis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flywheel_common.errors import InvalidArgument
from flywheel_feature.api.convert_online import to_lookup
from flywheel_feature.definitions.model import BatchView, DataType, Feature, View
from flywheel_feature.encoding.keys import entity_keys
from flywheel_feature.encoding.same_length_keys import MANY, SameLengthTexts, joined, keys_of
from flywheel_protos.feature.v1 import feature_pb2 as pb
from flywheel_protos.types.v1 import column_pb2
from tests.support.builders.feature_units import plan_of_view

PREFIXES = [b"default/one@1{", b"default/another@12{"]
LETTERS = st.sampled_from("ab\n\x01\x02\x03\x0a\0:{}$\r")


def encoded_together(texts: list[str]) -> SameLengthTexts | None:
    return SameLengthTexts.of(column_pb2.StringValues(values=texts).SerializeToString(), len(texts))


def names_of(texts: list[str]) -> list[bytes]:
    return entity_keys([(DataType.STRING, texts)])


def same_length_texts(length: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.text(LETTERS, min_size=length, max_size=length), min_size=1, max_size=8)


@given(st.integers(0, 12).flatmap(same_length_texts))
@example(["012345678\n", "0123456789"])
@example(["\n\x02", "ab"])
@example(["\x02a", "b\n"])
def test_batch_names_equal_names_encoded_one_by_one(texts: list[str]) -> None:
    found = encoded_together(texts)
    assert found is None or names_of(texts) == list(found)
    assert found is None or len(texts) == len(found)
    if all("\n" not in t for t in texts) and len(texts[0]) != 10:
        assert found is not None


@given(st.lists(st.text(LETTERS | st.just("é"), max_size=3), max_size=6))
def test_texts_of_different_lengths_are_not_batched(texts: list[str]) -> None:
    found = encoded_together(texts)
    assert (found is None) or names_of(texts) == list(found)
    if len({len(t.encode()) for t in texts}) != 1:
        assert found is None


@given(st.integers(0, 9).flatmap(lambda n: st.lists(same_length_texts(n), min_size=1, max_size=4)))
def test_joined_names_become_the_keys_of_every_view(requests: list[list[str]]) -> None:
    together = joined([encoded_together(texts) or names_of(texts) for texts in requests])
    names = [name for texts in requests for name in names_of(texts)]
    assert names == list(together)
    keys = keys_of([(prefix, together) for prefix in PREFIXES])
    assert [prefix + name for prefix in PREFIXES for name in names] == list(keys)
    assert len(PREFIXES) * len(names) == len(keys)


@pytest.mark.parametrize(
    "texts", [[f"e{i:03}" for i in range(100)], [f"e{i}" for i in range(100)], ["é\n"] * MANY]
)
def test_a_request_for_many_rows_gets_the_names_of_single_rows(texts: list[str]) -> None:
    features = (Feature("x", DataType.FLOAT64),)
    plan = plan_of_view(View("default", "v", "e", BatchView("s", ()), version=1, features=features))

    def named(values: list[str], rows: int) -> list[bytes]:
        column = column_pb2.Column(name="k", strings=column_pb2.StringValues(values=values))
        request = pb.GetOnlineFeaturesRequest(entities=column_pb2.Table(row_count=rows, columns=[column]))
        (names,) = to_lookup(request, plan).entities
        return list(names)

    assert [name for text in texts for name in named([text], 1)] == named(texts, len(texts))
    with pytest.raises(InvalidArgument) as rejected:
        named(texts, len(texts) + 1)
    assert "ROW_COUNT_MISMATCH" == rejected.value.reason


def test_requests_with_texts_of_other_lengths_are_joined() -> None:
    requests = [["ab", "cd"], ["efg"], ["h"]]
    together = joined([encoded_together(texts) or names_of(texts) for texts in requests])
    assert [b"2:ab}", b"2:cd}", b"3:efg}", b"1:h}"] == list(together)
    assert [b"p{1:h}"] == list(keys_of([(b"p{", together)]))[3:]


@given(st.integers(0, 200).filter(lambda n: n != 10), st.integers(1, 20))
def test_the_written_command_equals_that_of_hiredis(length: int, count: int) -> None:
    texts = [f"{i}"[:length].rjust(length, "x") for i in range(count)]
    found = encoded_together(texts)
    if length > 127:
        assert found is None
        return
    assert found is not None
    keys = keys_of([(prefix, found) for prefix in PREFIXES])
    written = keys.written(lambda n: b"$%d\r\n" % n, b"\r\n")
    reader = hiredis.Reader()
    reader.feed(b"*%d\r\n" % len(keys) + written)
    assert [p + n for p in PREFIXES for n in names_of(texts)] == reader.gets()
    assert hiredis.pack_command(tuple(keys)).endswith(written)
