"""The routing that each state of a rollout needs."""

from __future__ import annotations

from dataclasses import replace

from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.rollouts.rollout import Rollout
from flywheel_registry.rollouts.state_machine import Progress, RolloutState
from flywheel_registry.serving.routing import Routing, champion_only


def routing_during_rollout(
    routing: Routing, rollout: int, challenger: int, progress: Progress, policy: RolloutPolicy
) -> Routing:
    """Return the routing for a rollout's state; `routing` itself when nothing changes.

    PENDING_LOAD makes gateways load the challenger without traffic. PAUSED keeps the routing. PROMOTED makes
    the challenger the champion, every other end leaves the champion alone.
    """
    match progress.state:
        case RolloutState.PAUSED:
            return routing
        case RolloutState.PENDING_LOAD:
            wanted = replace(
                routing, challenger=challenger, rollout=rollout, shadow_percent=0.0, challenger_percent=0.0
            )
        case RolloutState.SHADOW:
            wanted = replace(
                routing,
                challenger=challenger,
                rollout=rollout,
                shadow_percent=policy.shadow_share,
                challenger_percent=0.0,
            )
        case RolloutState.CANARY:
            wanted = replace(
                routing,
                challenger=challenger,
                rollout=rollout,
                shadow_percent=0.0,
                challenger_percent=progress.challenger_percent,
            )
        case RolloutState.PROMOTED:
            return champion_only(routing, challenger)
        case RolloutState.REFUSED | RolloutState.ROLLED_BACK | RolloutState.ABORTED | RolloutState.EXPIRED:
            wanted = replace(
                routing, challenger=None, rollout=None, shadow_percent=0.0, challenger_percent=0.0
            )
    return routing if wanted == routing else replace(wanted, generation=routing.generation + 1)


async def apply_routing(records: RolloutRecords, rollout: Rollout) -> int:
    """Store the routing for the rollout's state and return its generation.

    When the rollout is PROMOTED nothing is stored: `replace_champion` does that.
    """
    routing = await records.routing(rollout.model)
    if rollout.progress.state is RolloutState.PROMOTED:
        return routing.generation
    wanted = routing_during_rollout(
        routing, rollout.number, rollout.challenger, rollout.progress, rollout.policy
    )
    if wanted != routing:
        await records.set_routing(rollout.model, wanted)
    return wanted.generation
