"""Ports of SCORE jobs: releases, feature sets, tables and the join of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flywheel_trainer.jobs.job import JobState
from flywheel_trainer.jobs.ports import TrainingSets


@dataclass(frozen=True)
class StoredFile:
    """A file on this service's S3."""

    name: str
    uri: str
    sha256: str


@dataclass(frozen=True)
class ScoredRelease:
    """A release with everything that scoring needs, stored on this service's S3."""

    name: str
    model: str
    """Resource name."""
    feature_set: str
    """Name with version."""
    features: tuple[str, ...]
    """The inputs of the model."""
    message: StoredFile
    """The `registry.v1.ServingRelease`."""
    files: tuple[StoredFile, ...]
    """The files of the model version."""


class Releases(Protocol):
    """The releases of the registry.

    `of` takes the name of a release or of a model version, and stores what it returns before it returns.
    Raises UnknownRelease, UnscorableRelease, DigestMismatch, PeerUnavailable, and S3Unavailable.
    """

    async def of(self, name: str) -> ScoredRelease: ...


@dataclass(frozen=True)
class SetFields:
    """What the rows of a feature set need."""

    join_keys: tuple[str, ...]
    request_fields: tuple[str, ...]


class FeatureSets(Protocol):
    """The feature sets of the feature service.

    `fields` raises NotFound and PeerUnavailable.
    """

    async def fields(self, feature_set: str) -> SetFields: ...


@dataclass(frozen=True)
class TableShape:
    """The columns of a table, and its number of rows."""

    columns: tuple[str, ...]
    rows: int


class Tables(Protocol):
    """Tables of users on S3, in Parquet files.

    `shape` reads only metadata. Raises UnknownTable, WrongTable for files that are no Parquet, S3Refused if
    the credentials of this service do not permit to read them, and S3Unavailable.
    """

    async def shape(self, uri: str) -> TableShape: ...


class FeatureJoins(TrainingSets, Protocol):
    """The joins of the feature service.

    - `build` is idempotent by request_id and returns the name of a job of the feature service.
    - `job` returns (state, training set, progress or error in one line).

    Raises InvalidArgument for a spine that does not fit, NotFound for an unknown resource, and
    PeerUnavailable.
    """

    async def build(
        self, project: str, feature_set: str, spine: Mapping[str, Any], request_id: str
    ) -> str: ...

    async def job(self, name: str) -> tuple[JobState, str, str]: ...


@dataclass(frozen=True)
class ScoringPeers:
    """The ports of SCORE jobs."""

    joins: FeatureJoins
    releases: Releases
    feature_sets: FeatureSets
    tables: Tables


def absent(needed: Sequence[str], columns: Sequence[str]) -> str | None:
    """The first needed name that is no column, or None."""
    return next((name for name in needed if name not in columns), None)
