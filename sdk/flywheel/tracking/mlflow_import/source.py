"""What an MLflow store has to give, whatever its format."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class SourceRun:
    """A run of MLflow; times are milliseconds since the epoch."""

    uuid: str
    experiment: str
    """Name of its experiment."""
    name: str
    status: str
    """RUNNING, SCHEDULED, FINISHED, FAILED or KILLED."""
    deleted: bool
    start_ms: int
    end_ms: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    artifacts: Path | None
    """Folder of its artifacts on this machine; None: they are elsewhere, at `artifact_uri`."""
    artifact_uri: str


@dataclass(frozen=True)
class SourcePoint:
    """A value of a metric."""

    step: int
    value: float
    time_ms: int


@dataclass(frozen=True)
class MlflowVersion:
    """One model version of MLflow. `location` is the URI of its folder."""

    model: str
    version: int
    location: str
    run: str
    description: str
    metrics: dict[str, float]
    tags: dict[str, str]
    aliases: tuple[str, ...] = ()


class ArtifactsElsewhere(Exception):
    """A sentence about artifacts that a store cannot read, now or later."""


class DamagedRun(ValueError):
    """A sentence about a file of a run that cannot be read; the other runs can."""


class Source(Protocol):
    """A store of MLflow, read only. Raises ValueError for what is no such store, or is damaged."""

    def runs(self) -> Iterator[SourceRun]: ...

    def metrics(self, run: SourceRun) -> Iterator[tuple[str, Sequence[SourcePoint]]]:
        """The points of a run by metric, in the order in which they were logged. Raises DamagedRun."""
        ...

    def artifacts(self, run: SourceRun) -> Iterator[tuple[str, Path]]:
        """The files of a run by name; a file may be gone when the next one is read.

        Raises ArtifactsElsewhere, after the others, for files that this store cannot read.
        """
        ...

    def close(self) -> None: ...


def local_artifacts(run: SourceRun) -> Iterator[tuple[str, Path]]:
    """`Source.artifacts` of a store whose files are on this machine."""
    if run.artifacts is None:
        if run.artifact_uri:
            raise ArtifactsElsewhere(f"The artifacts are at {run.artifact_uri}: they are not copied.")
        return
    for path in files_below(run.artifacts):
        yield path.relative_to(run.artifacts).as_posix(), path


def files_below(folder: Path) -> list[Path]:
    """The files of a folder and its folders, none if there is no such folder; a link could lead out of it."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def local_path(uri: str) -> Path | None:
    """The path of a local URI, or None."""
    if "://" not in uri and not uri.startswith("file:"):
        return Path(uri)
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" and parts.netloc in ("", "localhost") else None


def value_of(metric: dict[str, Any]) -> float:
    """The value of a metric that a server answers; infinities are the largest float there, or text."""
    value = float(metric["value"])
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value
