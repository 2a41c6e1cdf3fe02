"""`PipelineDefinitions` in memory."""

from __future__ import annotations

from datetime import datetime

from flywheel_common.paging import Page, cut, decode_token
from flywheel_trainer.fakes.requests import MemoryRequests
from flywheel_trainer.pipelines.definition import Pipeline, PipelineName, PipelineVersionName
from flywheel_trainer.pipelines.graph import Graph


class MemoryPipelineDefinitions:
    """`PipelineDefinitions` from lists of versions."""

    def __init__(self) -> None:
        self._requests = MemoryRequests()
        self._versions: dict[PipelineName, list[Pipeline]] = {}

    async def apply(
        self,
        name: PipelineName,
        graph: Graph,
        by: str,
        now: datetime,
        request_id: str = "",
        body: bytes = b"",
    ) -> tuple[Pipeline, bool]:
        def store() -> tuple[Pipeline, bool]:
            versions = self._versions.setdefault(name, [])
            if versions and versions[-1].graph == graph:
                return versions[-1], False
            number = PipelineVersionName(name.project, name.pipeline, len(versions) + 1)
            versions.append(Pipeline(number, graph, by, now))
            return versions[-1], True

        return self._requests.once("ApplyPipeline", request_id, body, store)

    async def get(self, name: PipelineName, version: int | None = None) -> Pipeline | None:
        found = [p for p in self._versions.get(name, []) if version in (None, p.name.version)]
        return found[-1] if found else None

    async def list(self, project: str, size: int, token: str) -> Page[Pipeline]:
        (after,) = decode_token(token, query=project) or [""]
        newest = [versions[-1] for name, versions in self._versions.items() if name.project == project]
        rows = sorted((p for p in newest if p.name.pipeline > str(after)), key=lambda p: p.name.pipeline)
        return cut(rows[: size + 1], size, lambda p: (p.name.pipeline,), query=project)
