"""What the use cases need from the outside. Each docstring is the law that every implementation must keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeAlias

from flywheel_common.postgres import transactions
from flywheel_registry.audit import AuditEntry
from flywheel_registry.resources import (
    Evidence,
    FeatureUse,
    Gateway,
    Model,
    ModelVersion,
    ObservedModel,
    Release,
    Rollout,
    RolloutChanged,
    RolloutStep,
    StageChanged,
)
from flywheel_registry.rollout import Comparison, Progress
from flywheel_registry.serving import Routing, Span
from flywheel_registry.stages import Stage


class Records(Protocol):
    """The registry's rows as one transaction sees them: all changes of one `Records` commit together or not at all,
    with their audit lines and events. Readers answer None for what is absent. `lock` makes every other transaction
    that locks the same model wait until this one ends; whoever changes stages, rollouts or routing holds it."""

    async def lock(self, model: str) -> bool: ...

    # models, versions, releases -------------------------------------------------------------------------------
    async def add_model(self, model: Model) -> bool:
        """False when the name is taken."""
        ...

    async def model(self, name: str) -> Model | None: ...

    async def models(self, project: str, after: str, tags: Mapping[str, str], limit: int) -> list[Model]:
        """By name, those after `after`."""
        ...

    async def change_model(self, model: Model) -> None:
        """Replaces what users may set; the revision rises by one."""
        ...

    async def add_version(self, version: ModelVersion) -> ModelVersion:
        """With the next number of its model; numbers rise in commit order, without gaps."""
        ...

    async def version(self, model: str, number: int) -> ModelVersion | None: ...

    async def versions(
        self, model: str, before: int, stage: Stage | None, tags: Mapping[str, str], limit: int
    ) -> list[ModelVersion]:
        """Newest first, those below `before`."""
        ...

    async def feature_uses(self, prefix: str, after: tuple[str, int, str], limit: int) -> list[FeatureUse]:
        """Uses of feature sets whose name begins with `prefix`, by (model, number, feature set), those after `after`."""
        ...

    async def champion(self, model: str) -> ModelVersion | None:
        """The version in PRODUCTION."""
        ...

    async def move_version(self, version: ModelVersion, to_stage: Stage, at: datetime, by: str) -> None:
        """Sets the stage; raises Aborted when the stored stage is no longer `version.stage`. The store refuses a second
        PRODUCTION of one model by itself."""
        ...

    async def mark_stored(self, model: str, version: int, artifact: str, sha256: str) -> None: ...

    async def digest_stored(self, sha256: str) -> bool:
        """Whether some version has these bytes stored."""
        ...

    async def add_release(self, release: Release) -> Release:
        """With the next number; it can never be changed."""
        ...

    async def release(self, model: str, number: int) -> Release | None: ...

    async def releases(self, model: str, before: int, limit: int) -> list[Release]: ...

    async def newest_release_of(self, model: str, version: int) -> Release | None: ...

    # evidence, audit, events ----------------------------------------------------------------------------------
    async def add_evidence(self, evidence: Evidence) -> Evidence: ...

    async def evidence(self, model: str, number: int) -> Evidence | None: ...

    async def newest_evidence_of(self, model: str, version: int, kind: str) -> Evidence | None: ...

    async def add_audit(self, entry: AuditEntry) -> AuditEntry:
        """Appends with the next sequence and the chained hash (those of `entry` do not count). Needs the model's lock."""
        ...

    async def audit(self, model: str, before: int, limit: int) -> list[AuditEntry]:
        """Newest first."""
        ...

    async def emit(self, event: StageChanged | RolloutChanged, at: datetime) -> None:
        """The event leaves if and only if this transaction commits, in order per model."""
        ...

    # rollouts and serving -------------------------------------------------------------------------------------
    async def add_rollout(self, rollout: Rollout) -> Rollout: ...

    async def rollout(self, model: str, number: int) -> Rollout | None: ...

    async def active_rollout(self, model: str) -> Rollout | None: ...

    async def rollouts(self, model: str, before: int, limit: int) -> list[Rollout]: ...

    async def undecided_rollouts(self) -> list[Rollout]:
        """Those a tick may move: active and not paused, of all models."""
        ...

    async def change_rollout(self, rollout: Rollout, step: RolloutStep) -> None:
        """Stores the new progress and appends `step` to the history."""
        ...

    async def note_hold(self, rollout: Rollout, progress: Progress) -> None:
        """Stores `reason` and `step_started_at` of a hold, unless the rollout has left `progress` meanwhile."""
        ...

    async def routing(self, model: str) -> Routing:
        """The empty routing, generation 0, when nothing was ever served."""
        ...

    async def set_routing(self, model: str, routing: Routing) -> None:
        """Stores it and wakes every replica's watchers after the commit."""
        ...

    async def spans(self, model: str) -> list[Span]:
        """Oldest first."""
        ...

    async def page_of_spans(self, model: str, before: int, limit: int) -> list[tuple[int, Span]]:
        """(position, span), newest first."""
        ...

    async def begin_span(self, model: str, span: Span) -> None:
        """Ends the open span at `span.since` and opens this one."""
        ...


Store: TypeAlias = transactions.Store[Records]


class Monitor(Protocol):
    """Who knows how variants compare."""

    async def compare(self, rollout: Rollout) -> Comparison | None:
        """Evidence since `rollout.step_started_at`; None when the monitor cannot be asked now. Never raises."""
        ...


class Gateways(Protocol):
    """Heartbeats of gateways, seen by every replica. Liveness is measured on one clock."""

    async def heartbeat(self, gateway: str, observed: Sequence[ObservedModel]) -> None: ...

    async def watching(self, gateway: str, project: str) -> None:
        """Notes what a gateway watches: a project, or empty for all."""
        ...

    async def seen(self, within_seconds: float, after: str = "", limit: int = 1000) -> list[Gateway]:
        """By id."""
        ...

    def on_heartbeat(self, wake: Callable[[], None]) -> Callable[[], None]:
        """`wake()` after every heartbeat received by this replica; call what is returned to end that."""
        ...
