"""Training code of users: its specification, and the checks that need no look at the code."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from flywheel_trainer.jobs.errors import InvalidSpec

BUILT_IN = "flywheel_job.recipes."
MAX_PARAMS_BYTES = 256 * 1024
MAX_PROVENANCE_BYTES = 256 * 1024
MAX_SEGMENTS = 1000
RESERVED = ("AWS_", "FLYWHEEL_", "RAY_")
"""Beginnings of the names of variables that the platform sets for a job."""

_FILE = re.compile(r"[\w./-]{1,500}\.py:[A-Za-z_]\w{0,200}")
_BUILT_IN = re.compile(r"flywheel_job\.recipes\.[\w.]{1,200}:[A-Za-z_]\w{0,200}")
_PATH = re.compile(r"[\w./ -]{1,500}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")


@dataclass(frozen=True)
class ScheduleSegment:
    """Parameters up to a step."""

    until_step: int
    params_json: str = "{}"

    @property
    def params(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.params_json)
        return found


@dataclass(frozen=True)
class CodeRecipe:
    """A function that every worker of a job calls, and its inputs."""

    function: str
    source_sha256: str = ""
    """Digest of the source archive; empty: the function is a built-in recipe."""
    params_json: str = "{}"
    training_sets: Mapping[str, str] = field(default_factory=dict)
    check: str = ""
    export: str = ""
    seed: int = 0
    provenance: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_bytes_per_worker: int = 0
    accelerator_type: str = ""
    requirements: str = ""
    """Requirements file in the source archive; empty: the packages of the cluster."""
    schedule: tuple[ScheduleSegment, ...] = ()
    """Parameters that change at a step; empty: none do."""

    @property
    def params(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.params_json)
        return found

    @classmethod
    def from_json(cls, fields: Mapping[str, Any] | None) -> Self | None:
        if not fields:
            return None
        schedule = tuple(ScheduleSegment(**one) for one in fields.get("schedule", ()))
        return cls(**{**fields, "schedule": schedule})


def check_code(code: CodeRecipe) -> None:
    """Raises InvalidSpec naming the field."""
    form = _FILE if code.source_sha256 else _BUILT_IN
    wanted = "path/file.py:function" if code.source_sha256 else f"{BUILT_IN}…:function without a source"
    for name in ("function", "check", "export"):
        value = getattr(code, name)
        if (value or name == "function") and form.fullmatch(value) is None:
            raise _invalid(name, f"is {value[:100]!r}, which is not of the form {wanted}")
        if ".." in value or value.startswith("/"):
            raise _invalid(name, f"is {value[:100]!r}, which is outside of the source folder")
    if code.source_sha256 and _SHA256.fullmatch(code.source_sha256) is None:
        raise _invalid("source_sha256", "must be 64 lower-case hexadecimal digits")
    if code.requirements and not (code.source_sha256 and is_file_name(code.requirements)):
        raise _invalid("requirements", "must be the path of a file in the source archive")
    if not _is_object(code.params_json):
        raise _invalid("params_json", "must be a JSON object of at most 256 KiB")
    if len(code.training_sets) > 32 or not all(code.training_sets) or not all(code.training_sets.values()):
        raise _invalid("training_sets", "must be at most 32 training sets with names")
    check_schedule(code.schedule, "train.code.schedule")
    if not 0 <= code.seed < 1 << 32:
        raise _invalid("seed", "must be below 2^32")
    size = sum(len(key.encode()) + len(value.encode()) for key, value in code.provenance.items())
    if len(code.provenance) > 32 or size > MAX_PROVENANCE_BYTES:
        raise _invalid("provenance", "must have at most 32 entries and 256 KiB")
    _check_environment(code.environment)


def check_schedule(schedule: Sequence[ScheduleSegment], field: str) -> None:
    """Raises InvalidSpec unless the steps ascend and the parameters are objects."""
    steps = [0, *(one.until_step for one in schedule)]
    if len(steps) > MAX_SEGMENTS + 1 or any(a >= b for a, b in itertools.pairwise(steps)):
        raise InvalidSpec(
            f"{field} must be at most {MAX_SEGMENTS} segments with ascending until_step.", field=field
        )
    if not all(_is_object(one.params_json) for one in schedule):
        raise InvalidSpec(f"{field} must have JSON objects of at most 256 KiB as params_json.", field=field)


def _check_environment(environment: Mapping[str, str]) -> None:
    if len(environment) > 64:
        raise _invalid("environment", "must have at most 64 variables")
    for name, value in environment.items():
        if _VARIABLE.fullmatch(name) is None or name.upper().startswith(RESERVED) or "\0" in value:
            raise _invalid("environment", f"has {name[:100]!r}, which is no variable that a job may set")


def is_file_name(path: str) -> bool:
    """Whether this is the relative path of a file, without characters of other meanings."""
    return _PATH.fullmatch(path) is not None and not {".", "..", ""} & set(path.split("/"))


def _is_object(text: str) -> bool:
    try:
        return len(text.encode()) <= MAX_PARAMS_BYTES and isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _invalid(name: str, rule: str) -> InvalidSpec:
    return InvalidSpec(f"train.code.{name} {rule}.", field=f"train.code.{name}")
