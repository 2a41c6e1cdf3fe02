"""Outputs of earlier steps, found by the content of what they did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class CachedStep:
    """A step that succeeded, and the pipeline run that it belongs to."""

    run: str
    output: str
    message: str
    outputs: Mapping[str, Any]


class StepCache(Protocol):
    """The steps that succeeded, by project and cache key (`PipelineStore.end_step` adds them).

    `find` returns the newest, or None.
    """

    async def find(self, project: str, key: str) -> CachedStep | None: ...


def cache_key(kind: str, contents: Mapping[str, Any]) -> str:
    """SHA-256 of kind and specification; the content of a training set stands for its name."""
    text = json.dumps([kind, contents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
