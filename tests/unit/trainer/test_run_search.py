"""Parsing of the filter and the order of ListRuns."""

from __future__ import annotations

import pytest

from flywheel_common.errors import InvalidArgument
from flywheel_trainer.runs.search import Order, Term, parse_filter, parse_order


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
        "params.lr>0.1",
        "state=RUNNING OR state=LOST",
        "metrics.auc",
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
