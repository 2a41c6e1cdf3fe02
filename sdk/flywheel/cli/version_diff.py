"""The differences between two versions of a definition, for `flywheel diff`."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

_OUTPUT_ONLY = ("name", "version", "created_at", "features", "schema", "join_keys", "request_fields")
"""Fields of a view that the server derives."""


def diff_lines(old: Message, new: Message) -> list[str]:
    """Lines such as `ttl: 86400s -> 172800s`, `+ batch.features[seats]: …` and `- features: facts:built`.

    Takes views and feature sets as the server returns them. Fields that the server derives are left out,
    except the features and view versions of a feature set.
    """
    lines: list[str] = []
    _compare("", _declared(old), _declared(new), lines)
    return lines


def _declared(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    kept = ("features",) if message.DESCRIPTOR.name == "FeatureSet" else ()
    return {k: v for k, v in found.items() if k not in _OUTPUT_ONLY or k in kept}


def _compare(path: str, old: Any, new: Any, lines: list[str]) -> None:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            _compare(f"{path}.{key}" if path else key, old.get(key), new.get(key), lines)
    elif isinstance(old, list | None) and isinstance(new, list | None):
        _compare_lists(path, old or [], new or [], lines)
    elif old is None:
        lines.append(f"+ {path}: {new}")
    elif new is None:
        lines.append(f"- {path}: {old}")
    else:
        lines.append(f"{path}: {old} -> {new}")


def _compare_lists(path: str, old: list[Any], new: list[Any], lines: list[str]) -> None:
    before, after = {_key(v, i): v for i, v in enumerate(old)}, {_key(v, i): v for i, v in enumerate(new)}
    for key in dict.fromkeys([*before, *after]):
        if isinstance(before.get(key, after.get(key)), str):
            if (key in before) != (key in after):
                lines.append(f"{'-' if key in before else '+'} {path}: {key}")
        else:
            _compare(f"{path}[{key}]", before.get(key), after.get(key), lines)
    shared = [k for k in before if k in after]
    if shared != [k for k in after if k in before]:
        lines.append(f"{path}: the order differs")


def _key(value: Any, index: int) -> Any:
    """What identifies an element of a list: its text, name or field, else its index."""
    if isinstance(value, str):
        return value
    named = value.get("feature", value)
    return named.get("name") or named.get("field") or index
