"""Parsing of the filter and the order of ListRuns."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel_common.errors import InvalidArgument
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from flywheel_trainer.runs.filter_terms import Term
from flywheel_trainer.runs.search import Order, parse_filter, parse_order
from tests.support.builders.trainer_requests import P, create_run
from tests.support.servers.trainer import MemoryTrainer


def test_a_filter_is_parsed_into_terms_with_their_operators() -> None:
    assert parse_filter(
        "experiment=late AND state=SUCCEEDED AND params.lr=0.1 AND metrics.auc>=0.7 AND tags.team!=a b"
    ) == (
        Term("experiment", "", "=", "late"),
        Term("state", "", "=", "SUCCEEDED"),
        Term("params", "lr", "=", "0.1"),
        Term("metrics", "auc", ">=", 0.7),
        Term("tags", "team", "!=", "a b"),
    )
    assert parse_filter("  ") == ()


@pytest.mark.parametrize(
    "text",
    [
        "auc>1",
        "metrics.auc>high",
        "state=DONE",
        "params.lr>high",
        "state=RUNNING OR OR state=LOST",
        "(state=RUNNING",
        "state=RUNNING)",
        "()",
        "NOT",
        "started_at>soon",
        "started_at.x>2026-01-01",
        "min.auc>nan",
        " OR ".join(["state=LOST"] * 101),
        "(" * 40 + "state=LOST" + ")" * 40,
        "metrics.auc",
        "metrics>1",
        "metrics.auc>nan",
        "metrics.a=b>0.7",
        "state.x=RUNNING",
        "params=x",
        "params.`lr=0.1",
        'tags.a="b',
        'tags.a="b" AND',
        'tags.a="b"c',
        "state=RUNNING AND AND state=LOST",
        '";--',
        "';--",
    ],
)
def test_an_invalid_filter_is_rejected(text: str) -> None:
    with pytest.raises(InvalidArgument) as rejected:
        parse_filter(text)
    assert rejected.value.reason == "INVALID_FILTER"


def test_an_order_is_parsed_and_an_invalid_one_is_rejected() -> None:
    assert parse_order("-metrics.val_loss") == Order("val_loss", descending=True)
    assert parse_order("metrics.auc") == Order("auc", descending=False)
    assert parse_order("") is None
    with pytest.raises(InvalidArgument):
        parse_order("auc")


NAMES = st.text(alphabet=string.ascii_letters + "._@/{}=,- <>!`\"'\n\tüß€\U0001f600", max_size=12)
"""Keys of params and tags, and their values: the API accepts any text."""
METRIC_KEYS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.@/{}=,-]{0,19}", fullmatch=True)
TEXT_TERMS = st.builds(
    Term, st.sampled_from(["params", "tags"]), NAMES | st.just(" AND "), st.sampled_from(["=", "!="]), NAMES
)
METRIC_TERMS = st.builds(
    Term,
    st.just("metrics"),
    METRIC_KEYS,
    st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
    st.floats(allow_nan=False),
)


def written(term: Term) -> str:
    """The term as a filter."""
    value = term.value if isinstance(term.value, float) else '"' + term.value.replace('"', '""') + '"'
    return f"{term.field}.`{term.key.replace('`', '``')}` {term.operator} {value}"


@given(st.lists(TEXT_TERMS | METRIC_TERMS, max_size=4))
def test_every_name_and_value_that_can_be_logged_can_be_searched(terms: list[Term]) -> None:
    assert parse_filter(" AND ".join(map(written, terms))) == tuple(terms)


@given(METRIC_KEYS, st.booleans())
def test_every_metric_can_be_ordered_by(key: str, descending: bool) -> None:
    minus = "-" if descending else ""
    assert (
        parse_order(f"{minus}metrics.`{key}`")
        == parse_order(f"{minus}metrics.{key}")
        == Order(key, descending)
    )


def test_a_name_without_special_characters_needs_no_quotes() -> None:
    assert parse_filter("metrics.val/loss@5{a,b}<=1e-3 AND params.größe=a=b AND tags.a.b=x  y") == (
        Term("metrics", "val/loss@5{a,b}", "<=", 0.001),
        Term("params", "größe", "=", "a=b"),
        Term("tags", "a.b", "=", "x  y"),
    )


@pytest.mark.timeout(30)
@pytest.mark.parametrize("part", [" ", "`", '"', "a ", "`` ", " AND", "a=", '"" '])
def test_a_long_invalid_filter_is_refused_in_linear_time(part: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_filter("metrics.a>x" + part * 300_000 + "\n=")


async def test_runs_are_found_by_names_with_special_characters(trainer: MemoryTrainer) -> None:
    params: Any = {"learning rate": "0.1", 'a`b"c': 'x" AND y', "": "empty"}
    name = (await trainer.stub.CreateRun(create_run(params=params))).run.name
    await trainer.stub.CreateRun(create_run())
    metrics = pb.LogMetricsRequest(run=name, keys=["val=loss,5"], steps=[1], values=[0.5], times=[1])
    await trainer.stub.LogMetrics(metrics)
    for text in (
        "params.`learning rate`=0.1",
        'params.`a``b"c`="x"" AND y" AND metrics.`val=loss,5`<0.6',
        "params.``=empty",
    ):
        found = await trainer.stub.ListRuns(pb.ListRunsRequest(parent=P, filter=text))
        assert [name] == [run.name for run in found.runs], text
