"""Filters of definition lists."""

from __future__ import annotations

import pytest

from flywheel_common.errors import InvalidArgument
from flywheel_feature.api.listing import page_of
from flywheel_feature.definitions.model import DataType, Entity, Field, Metadata

KEYS = (Field("k", DataType.STRING),)
ITEMS = [
    Entity("p", "carrier", KEYS, Metadata("Who flies", "Ops", {"team": "air", "tier": "1"})),
    Entity("p", "plane", KEYS, Metadata("What flies", "ops-data", {"team": "air"})),
    Entity("p", "route", KEYS, Metadata("From, to", "", {"team": "ground=x"})),
]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ["carrier", "plane", "route"]),
        ("tag:team=air", ["carrier", "plane"]),
        ("tag:team=ground=x", ["route"]),
        ("tag:tier", ["carrier"]),
        ("tag:team=AIR", []),
        ("owner:ops", ["carrier"]),
        ("OPS", ["carrier", "plane"]),
        ("flies", ["carrier", "plane"]),
        ("what flies", ["plane"]),
        ("tag:team=air AND owner:ops-data", ["plane"]),
        ("flies AND tag:tier=1", ["carrier"]),
        ("rout", ["route"]),
        ("nothing", []),
    ],
)
def test_terms_select_by_tag_owner_and_text(text: str, found: list[str]) -> None:
    page = page_of(ITEMS, parent="projects/p", text=text, size=0, token="")
    assert [e.id for e in page.items] == found


def test_pages_of_a_filtered_list_hold_every_item_once() -> None:
    first = page_of(ITEMS, parent="projects/p", text="flies", size=1, token="")
    second = page_of(ITEMS, parent="projects/p", text="flies", size=1, token=first.next_page_token)
    assert [e.id for e in (*first.items, *second.items)] == ["carrier", "plane"]
    assert second.next_page_token == ""


@pytest.mark.parametrize("text", ["tag:", "tag:=x", "owner:", "flies AND tag:"])
def test_an_empty_filter_term_is_rejected(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        page_of(ITEMS, parent="projects/p", text=text, size=0, token="")
    assert raised.value.reason == "INVALID_FILTER"
