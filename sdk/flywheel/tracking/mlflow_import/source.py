"""What an MLflow store has to give, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
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
    """Folder of its artifacts; None: they are elsewhere, at `artifact_uri`."""
    artifact_uri: str


@dataclass(frozen=True)
class SourcePoint:
    """A value of a metric."""

    step: int
    value: float
    time_ms: int


class Source(Protocol):
    """A store of MLflow, read only. Raises ValueError for what is no such store, or is damaged."""

    def runs(self) -> Iterator[SourceRun]: ...

    def metrics(self, run: SourceRun) -> Iterator[tuple[str, Sequence[SourcePoint]]]:
        """The points of a run by metric, in the order in which they were logged."""
        ...

    def close(self) -> None: ...


def local_path(uri: str) -> Path | None:
    """The path of a local URI, or None."""
    if "://" not in uri and not uri.startswith("file:"):
        return Path(uri)
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" and parts.netloc in ("", "localhost") else None
