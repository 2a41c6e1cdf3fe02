"""The port to stored models and versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from flywheel_registry.audit.ports import AuditRecords
from flywheel_registry.events.ports import EventRecords
from flywheel_registry.models.alias import Alias
from flywheel_registry.models.approval import Approval
from flywheel_registry.models.model import Model
from flywheel_registry.models.search import VersionQuery
from flywheel_registry.models.version import FeatureUse, ModelVersion
from flywheel_registry.stages.transitions import Stage


class ModelRecords(AuditRecords, EventRecords, Protocol):
    """Models and versions as one transaction sees them, with their audit entries and events.

    All changes of one `ModelRecords` commit together or not at all. Readers return None for an absent row. A
    transaction that changes stages, rollouts or routing must hold the model's lock.
    """

    async def lock(self, model: str) -> bool:
        """Lock the model until this transaction ends; return False when the model does not exist.

        Other transactions that lock the same model wait meanwhile.
        """
        ...

    async def add_model(self, model: Model) -> bool:
        """Add a model; return False when the name is taken."""
        ...

    async def model(self, name: str) -> Model | None: ...

    async def models(self, project: str, after: str, tags: Mapping[str, str], limit: int) -> list[Model]:
        """Return the project's models that have all `tags`, by name, beginning after the name `after`."""
        ...

    async def change_model(self, model: Model) -> None:
        """Replace the fields that users may change; the revision increases by one."""
        ...

    async def add_version(self, version: ModelVersion) -> ModelVersion:
        """Add a version with the next number of its model; numbers increase in commit order, without gaps."""
        ...

    async def version(self, model: str, number: int) -> ModelVersion | None: ...

    async def versions(
        self,
        model: str,
        before: int,
        stage: Stage | None,
        tags: Mapping[str, str],
        limit: int,
        *,
        golden: bool = False,
    ) -> list[ModelVersion]:
        """Return versions with a number below `before` that have `stage` and all `tags`, newest first.

        They have no golden rows unless `golden`.
        """
        ...

    async def feature_uses(self, prefix: str, after: tuple[str, int, str], limit: int) -> list[FeatureUse]:
        """Return the uses of feature sets whose name begins with `prefix`.

        They are ordered by (model, number, feature set), beginning after `after`.
        """
        ...

    async def champion(self, model: str) -> ModelVersion | None:
        """Return the version in PRODUCTION."""
        ...

    async def production_versions(self, models: Sequence[str]) -> dict[str, ModelVersion | None]:
        """Return the version in PRODUCTION, without its golden rows, or None, of each model that exists."""
        ...

    async def move_version(self, version: ModelVersion, to_stage: Stage, at: datetime, by: str) -> None:
        """Set the stage.

        Raises ConcurrentStageChange when the stored stage differs from `version.stage`, and
        ConcurrentChampionChange when the model would have a second version in PRODUCTION.
        """
        ...

    async def mark_stored(self, model: str, version: int, artifact: str, sha256: str) -> None:
        """Record that the artifact's bytes are stored.

        Raises ConcurrentArtifactChange when the version declares no such artifact with this digest.
        """
        ...

    async def record_check(self, version: ModelVersion, problems: Sequence[str]) -> None:
        """Replace what the check of a version found; empty: it passed."""
        ...

    async def has_dependents(self, version: ModelVersion) -> bool:
        """Return whether a release or an alias refers to the version. Deleted releases do not count."""
        ...

    async def delete_version(self, version: ModelVersion, at: datetime) -> None:
        """Hide a version to which nothing refers. Its number is not reused."""
        ...

    async def restore_version(self, model: str, number: int) -> bool:
        """Show a deleted version again; return False when there is none, or its artifacts were collected."""
        ...

    async def delete_model(self, name: str, at: datetime) -> None:
        """Hide a model with its versions and releases. Its name is not free again."""
        ...

    async def restore_model(self, name: str) -> bool:
        """Show a deleted model again, with what was deleted with it; return False when there is none."""
        ...

    async def search_versions(self, query: VersionQuery, limit: int) -> list[ModelVersion]:
        """Return the versions that match, without golden rows, in the order of the query."""
        ...

    async def change_tags(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Replace the tags of a version."""
        ...

    async def alias(self, model: str, alias: str) -> Alias | None: ...

    async def aliases(self, model: str, after: str, limit: int) -> list[Alias]:
        """Return the model's aliases by name, beginning after the name `after`."""
        ...

    async def put_alias(self, alias: Alias) -> None:
        """Add the alias, or replace the one with its name."""
        ...

    async def delete_alias(self, alias: Alias) -> None: ...

    async def digest_stored(self, sha256: str) -> bool:
        """Return whether a version has bytes with this digest stored."""
        ...

    async def lock_digest(self, sha256: str) -> None:
        """Lock the stored bytes with this digest until this transaction ends."""
        ...

    async def block_digests(self, sha256: str) -> bytes | None:
        """Return the digests of the blocks of these bytes, None when they are not known."""
        ...

    async def put_block_digests(self, sha256: str, digests: bytes) -> None:
        """Store the digests of the blocks of these bytes."""
        ...

    async def declared_digests(self, digests: Sequence[str]) -> set[str]:
        """Return those of the digests that an artifact of a version declares, also of a deleted version."""
        ...

    async def forget_digest(self, sha256: str) -> None:
        """Forget the digests of the blocks of these bytes."""
        ...

    async def purgeable_versions(self, before: datetime) -> int:
        """Return how many versions were deleted before this time and keep their artifacts."""
        ...

    async def purge_versions(self, before: datetime, limit: int) -> int:
        """Release the artifacts of at most `limit` such versions, which cannot be restored any more.

        Returns their number.
        """
        ...

    async def add_approval(self, approval: Approval) -> None:
        """Add an approval; it can never be changed. One person approves a version once."""
        ...

    async def approvals(self, model: str, version: int) -> list[Approval]:
        """Return the approvals of a version, oldest first."""
        ...

    async def registrar(self, model: str, version_name: str) -> str:
        """Return who registered a version according to the audit; empty when that is not known."""
        ...
