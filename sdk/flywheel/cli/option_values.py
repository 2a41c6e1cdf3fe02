"""Values of options that are more than a text: tags, metrics, their bounds, vocabularies."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from flywheel.catalog_calls import Bounds

_BOUND = re.compile(r"(?P<metric>[^<>]+)(?P<sign>>=|<=|>|<)(?P<limit>[^<>=]+)")


def parse_bounds(texts: Sequence[str]) -> dict[str, Bounds]:
    """The inclusive bounds of `auc>=0.8`, `auc>0.8`, `log_loss<=0.4` and `log_loss<0.4`, which must all hold.

    A strict bound is the next number above or below. Raises ValueError.
    """
    found: dict[str, Bounds] = {}
    for text in texts:
        parts = _BOUND.fullmatch(text)
        try:
            value = float(parts["limit"]) if parts else math.nan
        except ValueError:
            value = math.nan
        if parts is None or math.isnan(value):
            raise ValueError(f"{text!r} is neither `metric>=number`, `metric>number`, `<=` nor `<`.")
        low, high = found.get(parts["metric"], (None, None))
        if parts["sign"][0] == ">":
            value = value if parts["sign"] == ">=" else math.nextafter(value, math.inf)
            low = value if low is None else max(low, value)
        else:
            value = value if parts["sign"] == "<=" else math.nextafter(value, -math.inf)
            high = value if high is None else min(high, value)
        found[parts["metric"]] = (low, high)
    return found


def parse_tags(texts: Sequence[str]) -> dict[str, str]:
    """The tags of `key=value`. Raises ValueError."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ValueError(f"{text!r} is not `key=value`.")
        found[key] = value
    return found


def parse_metrics(texts: Sequence[str]) -> dict[str, float]:
    """The metrics of `name=number`. Raises ValueError."""
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            name = ""
        if not name:
            raise ValueError(f"{text!r} is not `name=number`.")
        found[name] = value
    return found


def parse_vocabularies(text: str) -> dict[str, list[str]]:
    """The vocabularies of a JSON object: feature → its values, in order. Raises ValueError."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"The file of vocabularies is no JSON: {error}.") from None
    lists = list(found.values()) if isinstance(found, dict) else [None]
    if not all(isinstance(values, list) and all(isinstance(v, str) for v in values) for values in lists):
        raise ValueError("The file of vocabularies does not map features to lists of texts.")
    return dict(found)
