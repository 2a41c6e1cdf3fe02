"""Edge tests for gates, releases and rollouts: conversion, status codes and pages."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from flywheel_common.grpc.channel import from_rpc_error
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.fakes.store import MemoryStore
from tests.support.builders.registry import ModelClient, numbers
from tests.support.servers.registry import refused

PRODUCTION = model_pb2.STAGE_PRODUCTION
OVERRIDE: dict[str, Any] = {"to_stage": PRODUCTION, "override": True, "reason": "by hand"}


def auc_gate(**bounds: float) -> model_pb2.GatePolicy:
    return model_pb2.GatePolicy(offline=[model_pb2.MetricThreshold(metric="auc", **bounds)])


async def test_evidence_reads_back(client: ModelClient) -> None:
    await client.create(gate_policy=auc_gate(min=0.5))
    version = await client.version(auc=0.25)
    answers = [
        await client.promote(version.name),
        await client.promote(version.name, override=True, reason="known"),
    ]
    assert [1, 2] == numbers([a.evidence for a in answers])
    for answer in answers:
        request = pb.GetEvidenceRequest(name=answer.evidence.name)
        evidence = (await client.stub.GetEvidence(request)).evidence
        assert answer.evidence == evidence
        assert ("OFFLINE", version.name, False) == (evidence.kind, evidence.model_version, evidence.passed)
        assert 0.25 == evidence.values["auc"]
        assert ["FAILED: auc: 0.25, must be at least 0.5"] == list(evidence.findings)
    with refused("NOT_FOUND", "UNKNOWN_EVIDENCE"):
        await client.stub.GetEvidence(pb.GetEvidenceRequest(name=f"{client.model}/evidence/3"))


async def test_an_override_needs_a_reason_and_is_audited(client: ModelClient) -> None:
    await client.create(gate_policy=auc_gate(min=0.8))
    version = await client.version(auc=0.75)
    with refused("INVALID_ARGUMENT", "REASON_REQUIRED"):
        await client.promote(version.name, override=True)
    answer = await client.promote(version.name, override=True, reason="known good")
    assert not answer.passed
    assert await client.stage(version.name) == "STAGING"
    assert [e.reason for e in await client.audit() if e.action == "OVERRIDE"] == ["override: known good"]


async def test_measured_metrics_outrank_registered_ones(client: ModelClient) -> None:
    await client.create(gate_policy=auc_gate(min=0.8))
    version = await client.version(auc=0.95)
    answer = await client.promote(version.name, evidence=model_pb2.Evidence(values={"auc": 0.75}))
    assert not answer.passed
    assert 0.75 == answer.evidence.values["auc"]
    with refused("INVALID_ARGUMENT", "INVALID_METRIC"):
        await client.promote(version.name, evidence=model_pb2.Evidence(values={"f1": float("nan")}))


async def test_a_difference_gate_compares_with_the_champion(client: ModelClient) -> None:
    await client.create(gate_policy=auc_gate(min_delta=0.0))
    await client.champion("first")
    worse = await client.version(b"second", auc=0.7)
    answer = await client.promote(worse.name)
    assert not answer.passed
    assert "0.7 - 0.75 = -0.05" in answer.evidence.findings[0]


async def test_releases_read_back_newest_first_in_pages(client: ModelClient) -> None:
    await client.create()
    feature_set = "projects/p/featureSets/f/versions/1"
    version = await client.version(feature_set=feature_set)
    calibrations = [
        None,
        model_pb2.Calibration(platt={"slope": 1.5, "intercept": -0.5}),
        model_pb2.Calibration(isotonic={"x": [0.0, 1.0], "y": [0.25, 0.75]}),
    ]
    fallback = model_pb2.Fallback(default_score=0.5)
    fallback.cached_max_age.FromSeconds(60)
    made = [
        await client.release(
            version.name, threshold=0.25, calibration=kind, fallback=fallback, segment_keys=["origin"]
        )
        for kind in calibrations
    ]
    assert [1, 2, 3] == numbers(made)
    for release, kind in zip(made, calibrations, strict=True):
        assert (kind or model_pb2.Calibration()) == release.calibration
        assert (fallback, 0.25, ["origin"]) == (
            release.fallback,
            release.threshold,
            list(release.segment_keys),
        )
        assert (version.name, feature_set) == (release.model_version, release.feature_set)
        assert release == (await client.stub.GetRelease(pb.GetReleaseRequest(name=release.name))).release
    first = await client.stub.ListReleases(pb.ListReleasesRequest(parent=client.model, page_size=2))
    rest = await client.stub.ListReleases(
        pb.ListReleasesRequest(parent=client.model, page_size=2, page_token=first.next_page_token)
    )
    assert [*reversed(made)] == [*first.releases, *rest.releases]


async def test_concurrent_promotions_leave_one_champion(client: ModelClient) -> None:
    await client.create()
    versions = [(await client.staged("same"))[0].name for _ in range(6)]

    await asyncio.gather(*(client.promote(name, **OVERRIDE) for name in versions))
    stages = [await client.stage(name) for name in versions]
    assert ["ARCHIVED"] * 5 + ["PRODUCTION"] == sorted(stages)
    champion = versions[stages.index("PRODUCTION")]
    model = (await client.stub.GetModel(pb.GetModelRequest(name=client.model))).model
    assert champion == model.production_version


async def test_promotion_serves_the_newest_release_of_the_version(client: ModelClient) -> None:
    await client.create()
    version, _ = await client.staged()
    newest = await client.release(version.name, threshold=0.75)
    other = await client.version(b"other")
    await client.release(other.name)
    await client.promote(version.name, **OVERRIDE)
    model = (await client.stub.GetModel(pb.GetModelRequest(name=client.model))).model
    assert (newest.name, version.name) == (model.production_release, model.production_version)


async def test_a_model_has_one_active_rollout_with_its_history(
    client: ModelClient, memory_store: MemoryStore
) -> None:
    await client.create(rollout_policy=model_pb2.RolloutPolicy(canary_percents=[10, 100]))
    _, first = await client.champion()
    _, release = await client.staged("second")
    results = await asyncio.gather(
        *(client.start(release.name, reason="go") for _ in range(4)), return_exceptions=True
    )
    (rollout,) = [r for r in results if not isinstance(r, BaseException)]
    losers = [from_rpc_error(r).reason for r in results if isinstance(r, grpc.RpcError)]
    assert ["ROLLOUT_ACTIVE"] * 3 == losers
    assert (first.name, release.name) == (rollout.champion_release, rollout.challenger_release)
    assert [2] == numbers([rollout])
    assert rollout == await client.rollout(rollout.name)
    for _ in range(2):
        await client.skip(rollout.name, "known")
    await client.stub.AbortRollout(pb.AbortRolloutRequest(name=rollout.name, reason="enough"))
    ended = await client.rollout(rollout.name)
    assert [
        ("PENDING_LOAD", 0, "go"),
        ("SHADOW", 0, "skipped: known"),
        ("CANARY", 10, "skipped: known"),
        ("ABORTED", 0, "enough"),
    ] == [
        (model_pb2.RolloutState.Name(s.state).removeprefix("ROLLOUT_STATE_"), s.challenger_percent, s.reason)
        for s in ended.history
    ]
    assert ended.HasField("ended_at")
    again = await client.start(release.name)
    listed = await client.stub.ListRollouts(pb.ListRolloutsRequest(parent=client.model))
    assert [again, ended] == list(listed.rollouts)[:2]
    assert [3, 2, 1] == numbers(listed.rollouts)
    kinds = [type(event).__name__ for event, _ in memory_store.events]
    assert 7 == kinds.count("RolloutChanged")


async def test_a_paused_rollout_is_still_active(client: ModelClient) -> None:
    await client.create()
    await client.champion()
    _, release = await client.staged("second")
    rollout = await client.start(release.name)
    await client.stub.PauseRollout(pb.PauseRolloutRequest(name=rollout.name, reason="wait"))
    assert model_pb2.ROLLOUT_STATE_PAUSED == (await client.rollout(rollout.name)).state
    with refused("FAILED_PRECONDITION", "ROLLOUT_ACTIVE"):
        await client.start(release.name)
    resumed = await client.stub.ResumeRollout(pb.ResumeRolloutRequest(name=rollout.name))
    assert model_pb2.ROLLOUT_STATE_PENDING_LOAD == resumed.rollout.state
    with refused("FAILED_PRECONDITION", "NOT_PAUSED"):
        await client.stub.ResumeRollout(pb.ResumeRolloutRequest(name=rollout.name))
