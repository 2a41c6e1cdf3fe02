"""The rules that end PENDING_LOAD.

By evidence it ends when every live gateway has loaded the challenger and reproduced its golden rows. An
operator may skip it when one of them has: without any, a release would be promoted that no gateway serves.
"""

from __future__ import annotations

from collections.abc import Sequence

from flywheel_registry.evidence.findings import Findings
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.rollouts.errors import NotLoaded
from flywheel_registry.rollouts.verdict import Decision, Verdict, expire_after
from flywheel_registry.serving.gateways import Gateway, watching_model

GATEWAY_SECONDS = 60.0
"""How long a gateway may be silent to be read at all; only live ones count."""


def decide_load(
    gateways: Sequence[Gateway], model: str, challenger: int, policy: RolloutPolicy, waited_seconds: float
) -> Verdict:
    """Return the verdict on a rollout that waits for gateways; `waited_seconds` is wall time without pauses.

    Gateways without a heartbeat in the last second are not asked: they get the challenger when they return.
    """
    release = ReleaseName.of(model, challenger)
    live = [gateway for gateway in watching_model(model, gateways) if gateway.live]
    findings, ready = Findings(), 0
    if not live:
        findings.add(False, "no gateway of the model is live")
    for gateway in live:
        seen = [observed for observed in gateway.observed if observed.model == model]
        failure = next((o.failures[release] for o in seen if release in o.failures), "")
        if _has_loaded(gateway, model, release):
            ready += findings.add(True, f"gateway {gateway.id} has loaded the challenger")
        elif failure:
            findings.add(False, f"gateway {gateway.id} cannot load the challenger: {failure}")
        else:
            findings.add(False, f"gateway {gateway.id} has not loaded the challenger yet")
    values = {"gateways": float(len(live)), "ready": float(ready)}
    if findings.passed:
        reason = f"Loaded by all {ready} live gateways."
        return Verdict(Decision.ADVANCE, reason, findings.lines(), values=values)
    verdict = Verdict(
        Decision.HOLD,
        f"Waiting for gateways: {'; '.join(findings.failed())}.",
        findings.lines(),
        False,
        values,
    )
    return expire_after(verdict, waited_seconds, policy.load_seconds, "load_timeout")


def require_loaded(gateways: Sequence[Gateway], model: str, challenger: int) -> None:
    """Raise NotLoaded unless a live gateway of the model has loaded the challenger."""
    release = ReleaseName.of(model, challenger)
    live = [gateway for gateway in watching_model(model, gateways) if gateway.live]
    if not any(_has_loaded(gateway, model, release) for gateway in live):
        raise NotLoaded(
            f"No live gateway has loaded {release}: the step ends when one has, and skipping it needs one.",
            release=release,
        )


def _has_loaded(gateway: Gateway, model: str, release: str) -> bool:
    return any(seen.model == model and release in seen.ready_releases for seen in gateway.observed)
