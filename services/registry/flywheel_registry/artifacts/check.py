"""Checks a version when its last file is uploaded: graph, signature, golden rows and feature set."""

from __future__ import annotations

from flywheel_common.clock import Clock
from flywheel_common.postgres.transactions import Store
from flywheel_common.signature import Signature
from flywheel_registry.artifacts.graph import feature_problems, report_problems
from flywheel_registry.artifacts.ports import FeatureSets, GraphRunner
from flywheel_registry.audit.journal import Journal
from flywheel_registry.models.lookups import find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.version import ArtifactState, ModelVersion, require_stored
from flywheel_registry.releases.errors import FeatureSetMismatch
from flywheel_registry.stages.transitions import Stage

MODEL_FILE = "model.onnx"
"""Name of the artifact that gateways load."""
LISTED_PROBLEMS = 100
MAX_PROBLEM_CHARACTERS = 2000


class VersionCheck:
    """Checks versions whose files are stored, and records what it finds."""

    def __init__(
        self, store: Store[ModelRecords], graphs: GraphRunner, features: FeatureSets, clock: Clock
    ) -> None:
        self._store = store
        self._graphs = graphs
        self._features = features
        self._clock = clock

    async def check(self, name: VersionName, by: str) -> ModelVersion:
        """Check a version and return it with the result.

        A version that passed, or that has left stage NONE, keeps its result. If this process dies, the
        version stays unchecked until the next call. Raises UnknownModelVersion, ArtifactsPending,
        Unavailable.
        """
        async with self._store.reading() as records:
            version = await find_version(records, name)
        require_stored(version)
        if version.artifact_state is ArtifactState.READY or version.stage is not Stage.NONE:
            return version
        problems = tuple(
            p[:MAX_PROBLEM_CHARACTERS] for p in (await self._problems(version))[:LISTED_PROBLEMS]
        )
        async with self._store.transaction() as records:
            await lock_model(records, name.parent)
            current = await find_version(records, name)
            if current.stage is not Stage.NONE or current.check_problems == problems:
                return current
            await records.record_check(current, problems)
            checked = await find_version(records, name)
            await Journal(records, name.parent, self._clock.now(), by).write(
                "CHECK",
                checked.name,
                from_state=current.artifact_state,
                to_state=checked.artifact_state,
                reason=" ".join(problems),
            )
        return checked

    async def check_feature_set(self, name: VersionName, feature_set: str) -> None:
        """Check that another feature set than that of a version has its inputs; "" means that of the version.

        Raises UnknownModelVersion, FeatureSetMismatch, Unavailable.
        """
        async with self._store.reading() as records:
            version = await find_version(records, name)
        if feature_set in ("", version.feature_set):
            return
        features = await self._features.features(feature_set)
        if found := feature_problems(version.signature, feature_set, features):
            raise FeatureSetMismatch(" ".join(found[:LISTED_PROBLEMS]))

    async def _problems(self, version: ModelVersion) -> list[str]:
        found = []
        if version.signature == Signature():
            found.append("The version has no signature.")
        if version.golden_rows.output is None:
            found.append("The version has no golden rows.")
        if not any(artifact.name == MODEL_FILE for artifact in version.artifacts):
            found.append(f"The version has no artifact {MODEL_FILE}.")
        if version.feature_set:
            features = await self._features.features(version.feature_set)
            found += feature_problems(version.signature, version.feature_set, features)
        if not found:
            report = await self._graphs.run(version)
            found = report_problems(report, version.signature, version.golden_rows)
        return found
