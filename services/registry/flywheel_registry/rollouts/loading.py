"""The rule that ends PENDING_LOAD: every live gateway has loaded the challenger and reproduced its rows."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel_registry.evidence.findings import Findings
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.rollouts.verdict import Decision, Verdict, expire_after
from flywheel_registry.serving.gateways import Gateway, watching_model


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
        if any(release in observed.ready_releases for observed in seen):
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
