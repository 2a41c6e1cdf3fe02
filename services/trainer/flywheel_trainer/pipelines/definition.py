"""A stored pipeline: a graph with a name and versions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Protocol

from flywheel_common.names import Pattern, ResourceName
from flywheel_common.paging import Page
from flywheel_trainer.pipelines.graph import Graph


@dataclass(frozen=True, slots=True)
class PipelineName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/pipelines/{pipeline}")
    project: str
    pipeline: str


@dataclass(frozen=True, slots=True)
class PipelineVersionName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/pipelines/{pipeline}/versions/{version:int}")
    project: str
    pipeline: str
    version: int


@dataclass(frozen=True)
class Pipeline:
    """One version of a pipeline; it never changes."""

    name: PipelineVersionName
    graph: Graph
    created_by: str
    created_at: datetime

    @property
    def content_hash(self) -> str:
        return content_hash(self.graph)


class PipelineDefinitions(Protocol):
    """Stores the versions of pipelines. Every method is one transaction.

    - `apply` stores a graph as the next version, from 1, unless the newest version has the same graph.
      Returns (the newest version, whether it is new). It is idempotent by request_id: a repeated request
      gets the first result, and another body raises RequestIdReused. Concurrent calls for one pipeline are
      serialized.
    - `get` returns a version, by default the newest, or None.
    - `list` returns the newest version of each pipeline, by name.
    """

    async def apply(
        self,
        name: PipelineName,
        graph: Graph,
        by: str,
        now: datetime,
        request_id: str = "",
        body: bytes = b"",
    ) -> tuple[Pipeline, bool]: ...

    async def get(self, name: PipelineName, version: int | None = None) -> Pipeline | None: ...

    async def list(self, project: str, size: int, token: str) -> Page[Pipeline]: ...


def parse_pipeline(name: str) -> tuple[PipelineName, int | None]:
    """(pipeline, version, or None for the newest). Raises InvalidName."""
    if "/versions/" in name:
        version = PipelineVersionName.parse(name)
        return PipelineName(version.project, version.pipeline), version.version
    return PipelineName.parse(name), None


def content_hash(graph: Graph) -> str:
    """SHA-256 of the graph."""
    return hashlib.sha256(json.dumps(graph.to_json(), sort_keys=True).encode()).hexdigest()
