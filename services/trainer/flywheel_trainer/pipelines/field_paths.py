"""Paths to fields of a JSON object, such as `train.tabular.epochs`.

A path continues into the object in a text field `params_json`. A key may contain dots: `metrics.a.b` finds
the key `a.b` of `metrics`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from flywheel_trainer.pipelines.errors import InvalidPipeline, MissingOutput

PARAMS = "params_json"


def with_values(spec: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with the values at their paths; objects on the way are made. Raises InvalidPipeline."""
    result: dict[str, Any] = deepcopy(dict(spec))
    for path, value in values.items():
        _set(result, path.split("."), value, path)
    return result


def _set(at: dict[str, Any], keys: list[str], value: Any, path: str) -> None:
    key, *rest = keys
    if not rest:
        at[key] = value
        return
    if key == PARAMS:
        params = json.loads(at.get(key) or "{}")
        _set(params, rest, _with_integers(value), path)
        at[key] = json.dumps(params, sort_keys=True)
        return
    inner = at.setdefault(key, {})
    if not isinstance(inner, dict):
        raise InvalidPipeline(f"The path {path!r} goes through {key!r}, which is no object.", field=path)
    _set(inner, rest, value, path)


def _with_integers(value: Any) -> Any:
    """The value with integers for whole numbers: a google.protobuf.Value has made floats of them."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _with_integers(one) for key, one in value.items()}
    return [_with_integers(one) for one in value] if isinstance(value, list) else value


def value_at(outputs: Mapping[str, Any], path: str, owner: str) -> Any:
    """The value at a path. Raises MissingOutput naming the owner."""
    at: Any = outputs
    keys = path.split(".")
    for position, key in enumerate(keys):
        if isinstance(at, Mapping):
            rest = ".".join(keys[position:])
            if rest in at:
                return at[rest]
            if key in at:
                at = at[key]
                continue
        raise MissingOutput.of(owner, path)
    return at


def has_value(spec: Mapping[str, Any], path: str) -> bool:
    """Whether a field is set to something other than its empty value."""
    at: Any = spec
    for key in path.split("."):
        if not isinstance(at, Mapping) or key not in at:
            return False
        at = at[key]
    return at not in ("", None, {}, [])
