"""Takes approvals of versions by people other than their author."""

from __future__ import annotations

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.audit.reasons import require_reason
from flywheel_registry.models.approval import Approval
from flywheel_registry.models.lookups import find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.promotion.errors import OwnVersion
from flywheel_registry.stages.transitions import Stage, illegal_transition


class Approvals:
    """Takes approvals."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def approve(self, records: ModelRecords, name: VersionName, reason: str, by: str) -> list[Approval]:
        """Approve a version and return all its approvals; a second approval by one person changes nothing.

        Raises ReasonRequired, UnknownModel, UnknownModelVersion, OwnVersion, and IllegalTransition for a
        rejected version.
        """
        require_reason(reason, "An approval")
        await lock_model(records, name.parent)
        version = await find_version(records, name)
        if version.stage is Stage.REJECTED:
            raise illegal_transition(version.stage, Stage.PRODUCTION, str(name))
        # The caller of CreateModelVersion may name another author, so both count as authors.
        if by in {version.registered_by, await records.registrar(name.parent, str(name))}:
            raise OwnVersion(f"{by} registered {name}: another person must approve it.")
        approvals = await records.approvals(name.parent, name.number)
        if any(one.approver == by for one in approvals):
            return approvals
        approval = Approval(name.parent, name.number, by, reason, self._clock.now())
        await records.add_approval(approval)
        await Journal(records, name.parent, approval.approved_at, by).write(
            "APPROVE", version.name, from_state=version.stage, to_state=version.stage, reason=reason
        )
        return [*approvals, approval]
