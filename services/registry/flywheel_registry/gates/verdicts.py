"""Reads the verdicts that the experiment gate needs, before the transaction of the decision."""

from __future__ import annotations

from flywheel_common.postgres.transactions import Store
from flywheel_registry.evidence.experiment_verdict import Experiments, ExperimentVerdict
from flywheel_registry.models.names import VersionName
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.releases.ports import ReleaseRecords


class ExperimentVerdicts:
    """The verdicts of the experiments on a release; none, and no call, for a model without a rule on them."""

    def __init__(self, store: Store[ReleaseRecords], experiments: Experiments) -> None:
        self._store = store
        self._experiments = experiments

    async def of_release(self, name: ReleaseName) -> tuple[ExperimentVerdict, ...] | None:
        """Return the verdicts on a release, newest first; None when the monitor does not answer."""
        async with self._store.reading() as records:
            ruled = await _has_rule(records, name.parent)
        return await self._read(name) if ruled else ()

    async def of_version(self, name: VersionName) -> tuple[ExperimentVerdict, ...] | None:
        """Return the verdicts on the release with which a version would serve, its newest."""
        async with self._store.reading() as records:
            ruled = await _has_rule(records, name.parent)
            release = await records.newest_release_of(name.parent, name.number) if ruled else None
        return await self._read(ReleaseName.of(name.parent, release.number)) if release else ()

    async def _read(self, release: ReleaseName | str) -> tuple[ExperimentVerdict, ...] | None:
        found = await self._experiments.verdicts(str(release))
        return None if found is None else tuple(found)


async def _has_rule(records: ReleaseRecords, model: str) -> bool:
    found = await records.model(model)
    return found is not None and found.gate_policy.experiment is not None
