"""Where a model version comes from, as a tree from its policy to its sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flywheel_common.errors import NotFound
from flywheel_trainer.pipelines.pipeline_run import PipelineRun, PipelineRunName
from flywheel_trainer.pipelines.ports import FeaturePeer, PipelineStore, RegistryPeer
from flywheel_trainer.policies.policy import PolicyName
from flywheel_trainer.policies.ports import PolicyStore
from flywheel_trainer.runs.ports import RunStore
from flywheel_trainer.runs.run import RunName

GONE = "no longer exists"
MAX_DEPTH = 20


@dataclass(frozen=True)
class Node:
    """Something with a name, and what it comes from."""

    kind: str
    name: str
    detail: str = ""
    children: tuple[Node, ...] = ()


class Origins:
    """Collects the tree from the stores of this service, the registry and the feature service."""

    def __init__(
        self,
        registry: RegistryPeer,
        feature: FeaturePeer,
        runs: RunStore,
        pipelines: PipelineStore,
        policies: PolicyStore,
    ) -> None:
        self._registry, self._feature, self._runs = registry, feature, runs
        self._pipelines, self._policies = pipelines, policies

    async def of(self, model_version: str) -> Node:
        """The tree of a model version. Raises NotFound, PeerUnavailable.

        What no longer exists is a node without children. A version that was not trained here has no run.
        """
        found = await self._registry.origin(model_version)
        children = []
        if found.pipeline_run:
            children.append(await self._pipeline_run(found.pipeline_run))
        if found.training_run:
            run = await self._run(found.training_run)
            children.append(await self._with_data(run, found.training_set))
        elif found.training_set:
            children.append(await self._training_set(found.training_set))
        if found.parent_version:
            children.append(Node("parent_version", found.parent_version, "training started from its weights"))
        return Node("model_version", model_version, children=tuple(children))

    async def _pipeline_run(self, name: str) -> Node:
        run = await self._pipelines.get(PipelineRunName.parse(name))
        if run is None:
            return Node("pipeline_run", name, GONE)
        children = [Node("pipeline", run.pipeline)] if run.pipeline else []
        if run.rerun_of:
            children.append(Node("pipeline_run", run.rerun_of, "steps of it were reused"))
        if run.policy:
            children.append(Node("policy", run.policy, children=await self._events(run)))
        return Node("pipeline_run", name, str(run.state), tuple(children))

    async def _events(self, run: PipelineRun) -> tuple[Node, ...]:
        """What started the run, or the one of which it is a rerun; empty: it is not known any more."""
        current: PipelineRun | None = run
        for _ in range(MAX_DEPTH):
            if current is None:
                break
            policy = PolicyName.parse(current.policy)
            decision = await self._policies.decision_of(policy, str(current.name))
            if decision is not None:
                time = f"{decision.trigger.lower()} at {decision.event_time.isoformat()}"
                return (Node("event", decision.alert or decision.event_time.isoformat(), time),)
            former = current.rerun_of
            current = await self._pipelines.get(PipelineRunName.parse(former)) if former else None
        return ()

    async def _run(self, name: str) -> Node:
        run = await self._runs.get_run(RunName.parse(name))
        if run is None:
            return Node("run", name, GONE)
        code = f"code {run.code_version[:12]}" if run.code_version else ""
        children = (Node("job", run.job),) if run.job else ()
        return Node("run", name, code, children)

    async def _with_data(self, run: Node, training_set: str) -> Node:
        if not training_set:
            return run
        return replace(run, children=(*run.children, await self._training_set(training_set)))

    async def _training_set(self, name: str) -> Node:
        try:
            found = await self._feature.get(name)
        except NotFound:
            return Node("training_set", name, GONE)
        detail = f"{found.row_count:,} rows, hash {found.content_hash[:12]}"
        try:
            definitions = _upstream(found.feature_set, await self._feature.upstream(found.feature_set))
        except NotFound:
            definitions = Node("feature_set", found.feature_set, GONE)
        return Node("training_set", name, detail, (definitions,))


def _upstream(name: str, edges: Sequence[tuple[str, str]], depth: int = 0) -> Node:
    """The node of a definition, above those that it reads; `edges` are (read, reader)."""
    reads = sorted({read for read, reader in edges if reader == name})
    children = () if depth >= MAX_DEPTH else tuple(_upstream(read, edges, depth + 1) for read in reads)
    return Node(
        _KINDS.get(name.split("/")[2] if name.count("/") >= 3 else "", "definition"), name, "", children
    )


_KINDS = {"featureSets": "feature_set", "views": "view", "sources": "source", "entities": "entity"}
