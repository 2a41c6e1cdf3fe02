"""Checks of keys and values before they are logged, so that the error has the caller's line.

The trainer checks the same; a test holds both sides equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flywheel.tracking.errors import TrackingError

METRIC_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@/{}=,: -]{0,249}")
ARTIFACT_PART = re.compile(r"[A-Za-z0-9_.@+=,() -]+")
MAX_ARTIFACT_NAME = 250
MAX_KEY = 250
MAX_VALUE = 8_000
MAX_STEP = 2**63 - 1


def check_metric_key(key: object) -> None:
    """Raises TrackingError."""
    if not isinstance(key, str) or METRIC_KEY.fullmatch(key) is None:
        raise TrackingError(f"Metric key {_shown(key)} must match {METRIC_KEY.pattern}.")


def number(key: str, value: Any) -> float:
    """The value as a float; NaN and infinities are numbers. Raises TrackingError."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TrackingError(f"Metric {key!r} is {_shown(value)}, which is no number.") from error


def step_number(step: Any) -> int:
    """The step as an integer of 64 bits. Raises TrackingError."""
    try:
        exact = int(step)
        if exact == step and -MAX_STEP - 1 <= exact <= MAX_STEP:
            return exact
    except (TypeError, ValueError, OverflowError):
        pass
    raise TrackingError(f"step is {_shown(step)}: it must be an integer of 64 bits.")


def texts(entries: Mapping[str, Any] | None, kind: str) -> dict[str, str]:
    """Params or tags as texts. Raises TrackingError for a key or value that is too long."""
    found = {}
    for key, value in (entries or {}).items():
        if not isinstance(key, str) or len(key) > MAX_KEY or "\0" in key:
            raise TrackingError(
                f"The key {_shown(key)} of a {kind} must be a text of at most {MAX_KEY} characters."
            )
        text = str(value)
        if len(text) > MAX_VALUE or "\0" in text:
            raise TrackingError(
                f"The {kind} {key!r} has {len(text)} characters: at most {MAX_VALUE} are allowed, and no "
                "null character; log a longer text with log_artifact."
            )
        found[key] = text
    return found


def check_artifact_name(name: str) -> str:
    """Returns the name. Raises TrackingError."""
    parts = name.split("/")
    if len(name) > MAX_ARTIFACT_NAME or any(
        part in (".", "..") or ARTIFACT_PART.fullmatch(part) is None for part in parts
    ):
        raise TrackingError(
            f"Artifact name {_shown(name)} must be a relative path of at most {MAX_ARTIFACT_NAME} "
            f"characters, with parts that match {ARTIFACT_PART.pattern} and are not . or .."
        )
    return name


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
