"""Limits of the texts, times and artifact names of runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from flywheel_job.outcome import Artifact
from flywheel_trainer.runs.errors import (
    InvalidArtifact,
    InvalidParam,
    InvalidRunText,
    InvalidRunTime,
    InvalidTag,
)
from flywheel_trainer.runs.run import Run, RunEdit, RunUpdate

MAX_ENTRIES = 10_000
"""Params or tags of one request."""
MAX_KEY = 250
MAX_VALUE = 8_000
MAX_NAME = 250
MAX_TEXT = 64 * 1024
MAX_CLOCK_SKEW = timedelta(minutes=5)
ARTIFACT_PART = re.compile(r"[A-Za-z0-9_.@+=,() -]+")
MAX_ARTIFACT_NAME = 250


def check_run(run: Run, now: datetime) -> None:
    """Raises InvalidParam, InvalidTag, InvalidRunText, InvalidRunTime or InvalidArtifact."""
    _check_map(run.params, "param", InvalidParam)
    _check_map(run.tags, "tag", InvalidTag)
    _check_map(run.environment, "environment entry", InvalidRunText, MAX_TEXT)
    for text, limit, field in (
        (run.display_name, MAX_NAME, "display_name"),
        (run.notes, MAX_TEXT, "notes"),
        (run.code_version, MAX_TEXT, "code_version"),
        (run.training_set, MAX_TEXT, "training_set"),
        (run.job, MAX_TEXT, "job"),
    ):
        _check_text(text, limit, field)
    check_artifacts(run.artifacts)
    if run.started_at is not None and run.started_at > now + MAX_CLOCK_SKEW:
        raise InvalidRunTime("started_at is in the future.", field="started_at")


def check_update(update: RunUpdate, now: datetime) -> None:
    """Raises InvalidParam, InvalidTag, InvalidRunText, InvalidRunTime or InvalidArtifact."""
    _check_map(update.params, "param", InvalidParam)
    _check_map(update.tags, "tag", InvalidTag)
    _check_text(update.error_message, MAX_TEXT, "error_message")
    check_artifacts(update.artifacts)
    if update.ended_at is not None and update.ended_at > now + MAX_CLOCK_SKEW:
        raise InvalidRunTime("ended_at is in the future.", field="ended_at")


def check_edit(edit: RunEdit) -> None:
    """Raises InvalidTag or InvalidRunText."""
    _check_map(edit.tags, "tag", InvalidTag)
    _check_text(edit.display_name or "", MAX_NAME, "display_name")
    _check_text(edit.notes or "", MAX_TEXT, "notes")
    _check_map(dict.fromkeys(edit.removed_tags, ""), "tag", InvalidTag)


def check_artifacts(artifacts: Sequence[Artifact]) -> None:
    """Raises InvalidArtifact."""
    for artifact in artifacts:
        check_artifact_name(artifact.name)
        _check_text(artifact.uri, MAX_TEXT, "uri")


def check_artifact_name(name: str) -> None:
    """Raises InvalidArtifact."""
    parts = name.split("/")
    if len(name) > MAX_ARTIFACT_NAME or any(
        part in (".", "..") or ARTIFACT_PART.fullmatch(part) is None for part in parts
    ):
        raise InvalidArtifact(
            f"Artifact name {name[:80]!r} is not valid: it must be a relative path of at most "
            f"{MAX_ARTIFACT_NAME} characters, with parts that match {ARTIFACT_PART.pattern}.",
            field="artifact",
        )


def _check_map(
    entries: Mapping[str, str],
    kind: str,
    error: type[InvalidParam | InvalidTag | InvalidRunText],
    max_value: int = MAX_VALUE,
) -> None:
    if len(entries) > MAX_ENTRIES:
        raise error(f"One request can set at most {MAX_ENTRIES} {kind}s, not {len(entries)}.")
    for key, value in entries.items():
        if len(key) > MAX_KEY or "\0" in key:
            raise error(
                f"The key {key[:80]!r} of a {kind} has {len(key)} characters: at most {MAX_KEY} are allowed, "
                "and no null character."
            )
        if len(value) > max_value or "\0" in value:
            raise error(
                f"The {kind} {key!r} has {len(value)} characters: at most {max_value} are allowed, and no "
                "null character."
            )


def _check_text(text: str, limit: int, field: str) -> None:
    if len(text) > limit or "\0" in text:
        raise InvalidRunText(
            f"{field} has {len(text)} characters: at most {limit} are allowed, and no null character.",
            field=field,
        )
