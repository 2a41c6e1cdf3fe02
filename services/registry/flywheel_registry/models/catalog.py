"""Creates and updates models, and registers versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.models.declaration import check_version
from flywheel_registry.models.errors import EtagMismatch, InvalidFieldMask, ModelExists
from flywheel_registry.models.lookups import find_model, lock_model
from flywheel_registry.models.model import Model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.tags import check_tags
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.policies.snapshot import policy_changes
from flywheel_registry.stages.transitions import Stage

POLICY_FIELDS = frozenset({"gate_policy", "rollout_policy"})
MUTABLE_FIELDS = ("description", "owner", "tags", *sorted(POLICY_FIELDS))


class ModelCatalog:
    """Creates and updates models and registers versions. `max_artifact_bytes` bounds one declared file."""

    def __init__(self, clock: Clock, max_artifact_bytes: int) -> None:
        self._clock = clock
        self._max_artifact_bytes = max_artifact_bytes

    async def create_model(self, records: ModelRecords, model: Model, by: str) -> Model:
        """Create a model. Raises ModelExists, InvalidPolicy."""
        model.gate_policy.check()
        model.rollout_policy.check()
        if not await records.add_model(replace(model, created_at=self._clock.now())):
            raise ModelExists(
                f"Model {model.name} exists, or was deleted: use it, restore it, or choose another id.",
                model=model.name,
            )
        await Journal(records, model.name, self._clock.now(), by).write("CREATE", model.name)
        return await find_model(records, model.name)

    async def update_model(
        self, records: ModelRecords, wanted: Model, fields: Sequence[str], etag: str, by: str
    ) -> Model:
        """Set `fields` to their values in `wanted`; all other fields keep their values.

        Raises EtagMismatch, InvalidFieldMask, InvalidPolicy, UnknownModel.
        """
        if not fields:
            raise InvalidFieldMask("update_mask is empty and the model has no field to change.")
        unknown = [field for field in fields if field not in MUTABLE_FIELDS]
        if unknown:
            raise InvalidFieldMask(
                f"update_mask names {unknown[0]!r}; only {', '.join(MUTABLE_FIELDS)} can change."
            )
        await lock_model(records, wanted.name)
        current = await find_model(records, wanted.name)
        if etag and etag != current.etag:
            raise EtagMismatch("The model was changed after it was read: read it again and retry.")
        changed = replace(current, **{field: getattr(wanted, field) for field in fields})
        changed.gate_policy.check()
        changed.rollout_policy.check()
        await records.change_model(changed)
        await Journal(records, wanted.name, self._clock.now(), by).write(
            "UPDATE", wanted.name, reason="; ".join(_change(current, changed, field) for field in fields)
        )
        return await find_model(records, wanted.name)

    async def create_version(self, records: ModelRecords, version: ModelVersion, by: str) -> ModelVersion:
        """Register a version; it is PENDING until its files are uploaded.

        Raises UnknownModel, and the errors of `check_version` and of a malformed parent version name.
        """
        check_version(version, self._max_artifact_bytes)
        check_tags(version.tags)
        if version.parent_version:
            VersionName.parse(version.parent_version)
        await lock_model(records, version.model)
        now = self._clock.now()
        added = await records.add_version(
            replace(
                version,
                stage=Stage.NONE,
                artifacts=tuple(replace(artifact, stored=False) for artifact in version.artifacts),
                registered_at=now,
                registered_by=version.registered_by or by,
                promoted_at=None,
                promoted_by="",
                check_problems=None,
            )
        )
        await Journal(records, added.model, now, by).write(
            "REGISTER", added.name, to_state=Stage.NONE, reason=added.description
        )
        return added


def _change(before: Model, after: Model, field: str) -> str:
    """Return a changed field as the audit shows it; a policy with its values before and after."""
    match field:
        case "gate_policy":
            changes = policy_changes(before.gate_policy, after.gate_policy)
        case "rollout_policy":
            changes = policy_changes(before.rollout_policy, after.rollout_policy)
        case _:
            return field
    return f"{field}: {changes or 'unchanged'}"
