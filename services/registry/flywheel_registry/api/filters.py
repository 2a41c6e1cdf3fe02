"""Parses the filters of list methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flywheel_registry.api.errors import InvalidFilter
from flywheel_registry.stages.transitions import Stage


@dataclass(frozen=True, slots=True)
class Filter:
    """A parsed filter: a stage, None for any, and tags that must all be present."""

    stage: Stage | None
    tags: Mapping[str, str]


def parse_filter(text: str, fields: Sequence[str]) -> Filter:
    """Parse `stage=PRODUCTION AND tag:team=ops`. `fields` are the supported fields. Raises InvalidFilter."""
    stage: Stage | None = None
    tags: dict[str, str] = {}
    for part in (p.strip() for p in text.split(" AND ") if p.strip()):
        left, equals, value = part.partition("=")
        left, value = left.strip(), value.strip()
        if equals and left.startswith("tag:") and len(left) > 4:
            tags[left[4:]] = value
        elif equals and left == "stage" and "stage" in fields and value in Stage.__members__:
            stage = Stage(value)
        else:
            supported = "`tag:key=value`" + "".join(f", `{field}=…`" for field in fields)
            raise InvalidFilter(f"The filter does not support {part[:80]!r}: use {supported}, joined by AND.")
    return Filter(stage, tags)
