"""The record of a complete checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from flywheel_trainer.checkpoints.errors import InvalidCheckpoint

MAX_CHECKPOINTS, MAX_METRICS, MAX_KEY = 100, 100, 500
MAX_STEP, MAX_WORLD = 1 << 62, 1 << 20
FOLDER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}){0,3}")
NAME = re.compile(r"[0-9]{1,40}-[0-9]{1,20}")


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint of a job, or of a trial of it."""

    folder: str
    """Below the folder of the job's checkpoints; empty for those of the job itself."""
    name: str
    """Last part of its prefix on the object store, `{step}-{attempt}`."""
    step: int
    attempt: int
    world_size: int
    size_bytes: int
    created_at: datetime
    metrics: Mapping[str, float]


def check_checkpoints(folder: str, checkpoints: Sequence[Checkpoint]) -> None:
    """Raises InvalidCheckpoint unless these can be the checkpoints of a folder."""
    for problem in _problems(folder, checkpoints):
        raise InvalidCheckpoint(f"{problem}.", field="checkpoints")


def _problems(folder: str, checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    if folder and FOLDER.fullmatch(folder) is None:
        yield f"{folder!r:.200} is no folder of checkpoints"
    if len(checkpoints) > MAX_CHECKPOINTS:
        yield f"{len(checkpoints)} checkpoints are more than {MAX_CHECKPOINTS}"
    if len({one.name for one in checkpoints}) != len(checkpoints):
        yield "two checkpoints have one uri"
    for one in checkpoints:
        if one.folder != folder or NAME.fullmatch(one.name) is None:
            yield f"checkpoint {one.name!r:.100} is not in the folder"
        in_range = 0 <= one.step <= MAX_STEP and 0 <= one.size_bytes <= MAX_STEP
        if not (in_range and one.attempt > 0 and 0 < one.world_size <= MAX_WORLD):
            yield f"checkpoint {one.name} has a number that is out of range"
        if len(one.metrics) > MAX_METRICS or not all(map(math.isfinite, one.metrics.values())):
            yield f"checkpoint {one.name} has more than {MAX_METRICS} metrics, or one that is not finite"
        if any(not key or len(key) > MAX_KEY or "\0" in key for key in one.metrics):
            yield f"checkpoint {one.name} has a metric without a name or with one that is too long"
