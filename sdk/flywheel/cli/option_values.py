"""Values of options that are more than a text: tags, metrics, their bounds, vocabularies."""

from __future__ import annotations

import json
from collections.abc import Sequence

from flywheel.catalog_calls import Bounds


def parse_bounds(texts: Sequence[str]) -> dict[str, Bounds]:
    """The bounds of `auc>=0.8` and `log_loss<=0.4`. Raises ValueError."""
    found: dict[str, Bounds] = {}
    for text in texts:
        metric, sign, limit = text.partition(">=" if ">=" in text else "<=")
        try:
            value = float(limit)
        except ValueError:
            sign = ""
        if not (metric and sign):
            raise ValueError(f"{text!r} is neither `metric>=number` nor `metric<=number`.")
        low, high = found.get(metric, (None, None))
        found[metric] = (value, high) if sign == ">=" else (low, value)
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
