"""Parsing and formatting of resource names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from flywheel_common.errors import InvalidArgument
from flywheel_common.names import Pattern, ResourceName, check_id


@dataclass(frozen=True, slots=True)
class VersionName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/versions/{version:int}")
    project: str
    model: str
    version: int


def test_a_name_is_parsed_into_typed_parts_and_back() -> None:
    name = VersionName.parse("projects/default/models/late-arrival/versions/42")
    assert name == VersionName("default", "late-arrival", 42)
    assert str(name) == "projects/default/models/late-arrival/versions/42"


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "projects/default",
        "projects/Default/models/m/versions/1",
        "projects/d/models/m/versions/0",
        "projects/d/models/m/versions/01",
        "projects/d/models/m/versions/-1",
        "projects/d/models/m/versions/1/",
        "projects/d/models/m/versions/1\n",
        "projects/../models/m/versions/1",
        "/projects/d/models/m/versions/1",
        "projects/" + "a" * 64 + "/models/m/versions/1",
        "projects/d/models/m/versions/" + "9" * 30,
        "projects/d\0/models/m/versions/1",
        "projects/ä/models/m/versions/1",
        "projects/d/models/m/versions/١",
    ],
)
def test_another_form_is_refused_with_the_expected_form(bad: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        VersionName.parse(bad)
    assert caught.value.reason == "INVALID_NAME"
    assert caught.value.metadata["expected"] == "projects/{project}/models/{model}/versions/{version}"
    assert "projects/{project}/models/{model}/versions/{version}" in caught.value.message


def test_formatting_refuses_invalid_parts() -> None:
    with pytest.raises(InvalidArgument):
        str(VersionName("a/b", "m", 1))
    with pytest.raises(InvalidArgument):
        str(VersionName("p", "m", 0))


def test_ids_hold_63_characters_and_no_more() -> None:
    assert check_id("a" * 63) == "a" * 63
    for bad in ("a" * 64, "", "9a", "a b", "a\n"):
        with pytest.raises(InvalidArgument):
            check_id(bad, "view")


def test_generated_ids_have_their_own_pattern() -> None:
    pattern = Pattern("projects/{project}/runs/{run:any}")
    run = "0193e0a0-7c00-7000-8000-000000000000"
    assert pattern.parse(f"projects/p/runs/{run}") == {"project": "p", "run": run}
    assert pattern.match("projects/p/runs/..") is None
