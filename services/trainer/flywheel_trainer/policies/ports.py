"""The stores of retraining policies and decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from flywheel_common.paging import Page
from flywheel_trainer.policies.decision import Decision, Drift, Trigger
from flywheel_trainer.policies.policy import Policy, PolicyName
from flywheel_trainer.policies.schedule import Due


@dataclass(frozen=True)
class TimedPolicy:
    """A policy, when it was set or last changed, and the newest time that each trigger decided."""

    policy: Policy
    set_at: datetime
    decided: Mapping[Trigger, datetime]

    def after(self, trigger: Trigger) -> datetime:
        """Times up to this one are not decided any more."""
        return max(self.set_at, self.decided.get(trigger, self.set_at))


class PolicyStore(Protocol):
    """Stores policies and lists their decisions.

    - `set` replaces the policy of this name. It is idempotent by request_id: a repeated request returns its
      policy and changes nothing, even if another policy was set since. A policy that is set again as it is
      keeps its `set_at`, so that no time is lost. Raises RequestIdReused for another body.
    - `list` returns the policies of a project, by id.
    - `decisions` returns the newest first.
    - `decision_of` returns the decision that started a pipeline run, or None.
    - `timed` returns the policies that have a schedule or a continuous training and are not disabled.
    - `decide_time` records the decision on a time (`policies.decision.decide_time`) and the run that it
      starts, both in one transaction. It returns None and changes nothing if the policy or its trigger
      is gone, the time was decided before, or the decision is to be made later. Decisions of one policy are
      serialized.
    - A stored pipeline is read in the same transaction. One that does not accept the parameters is decided as
      PIPELINE_REFUSED, with the error as the message of the decision.
    """

    async def set(self, policy: Policy, request_id: str, body: bytes, now: datetime) -> Policy: ...

    async def get(self, name: PolicyName) -> Policy | None: ...

    async def list(self, project: str, size: int, token: str) -> Page[Policy]: ...

    async def decisions(self, name: PolicyName, size: int, token: str) -> Page[Decision]: ...

    async def decision_of(self, name: PolicyName, pipeline_run: str) -> Decision | None: ...

    async def timed(self) -> Sequence[TimedPolicy]: ...

    async def decide_time(
        self, name: PolicyName, trigger: Trigger, due: Due, now: datetime
    ) -> Decision | None: ...


class Decisions(Protocol):
    """Makes the decisions on drift.

    `decide` records the decision on a drifting window (`policies.decision.decide`) and the run that it
    starts, both in one transaction. It returns None and changes nothing if the model has no policy or the
    window was decided before. Decisions of one policy are serialized, so that each sees the runs that earlier
    ones started.
    """

    async def decide(self, drift: Drift, now: datetime) -> Decision | None: ...
