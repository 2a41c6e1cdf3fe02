"""The laws of what the registry holds (test_store.py, test_repeats.py) as callers see them: through real RPCs to the whole registry, over
the store in memory and over PostgreSQL. A law that no RPC reaches stands at the end with its reason."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import UTC
from typing import Any

import grpc
import pytest

from flywheel_common.grpc.channel import from_rpc_error
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.audit import AuditEntry, first_break
from flywheel_registry.testing import Story, refused

PRODUCTION, STAGING = model_pb2.STAGE_PRODUCTION, model_pb2.STAGE_STAGING
FILE = model_pb2.Artifact(name="model.onnx", size_bytes=1, sha256="ab" * 32)


def numbers(items: Sequence[Any]) -> list[int]:
    return [int(item.name.rsplit("/", 1)[1]) for item in items]


async def chain(story: Story) -> list[AuditEntry]:
    """The audit as callers read it, oldest first."""
    return [
        AuditEntry(
            story.model, e.sequence, e.at.ToDatetime(tzinfo=UTC), e.actor, e.action, e.subject, e.from_state, e.to_state, e.reason,
            e.evidence, e.hash,
        )
        for e in await story.audit()
    ]  # fmt: skip


async def test_models_read_back_and_a_name_is_taken_once(story: Story) -> None:
    gate = model_pb2.GatePolicy(
        offline=[model_pb2.MetricThreshold(metric="auc", min=0.5)], min_evaluation_rows=100
    )
    created = await story.create(description="why", owner="ann", tags={"a": "b"}, gate_policy=gate)
    assert ("why", "ann", {"a": "b"}, gate) == (
        created.description, created.owner, dict(created.tags), created.gate_policy,
    )  # fmt: skip
    with refused("ALREADY_EXISTS", "MODEL_EXISTS"):
        await story.create(owner="bob")
    stub = story.stub
    assert created == (await stub.GetModel(pb.GetModelRequest(name=story.model))).model
    with refused("NOT_FOUND", "UNKNOWN_MODEL"):
        await stub.GetModel(pb.GetModelRequest(name="projects/default/models/other"))
    changed = model_pb2.Model(name=story.model, owner="bob", etag=created.etag)
    update = pb.UpdateModelRequest(model=changed)
    update.update_mask.paths.extend(["owner", "tags"])
    answered = (await stub.UpdateModel(update)).model
    assert ("bob", {}, "why") == (answered.owner, dict(answered.tags), answered.description)
    assert answered.etag != created.etag
    assert answered == (await stub.GetModel(pb.GetModelRequest(name=story.model))).model
    with refused("ABORTED", "ETAG_MISMATCH"):
        await stub.UpdateModel(update)


async def test_models_are_listed_by_name_and_tags_within_a_project(story: Story) -> None:
    stub = story.stub
    for i, name in enumerate(["c", "a", "b"]):
        model = model_pb2.Model(tags={"n": str(i % 2), "all": "yes"})
        await stub.CreateModel(pb.CreateModelRequest(parent="projects/p", model_id=name, model=model))
    await stub.CreateModel(pb.CreateModelRequest(parent="projects/q", model_id="a"))

    async def names(size: int, filter_: str = "", token: str = "") -> tuple[list[str], str]:
        page = await stub.ListModels(
            pb.ListModelsRequest(parent="projects/p", page_size=size, filter=filter_, page_token=token)
        )
        return [m.name[-1] for m in page.models], page.next_page_token

    assert (["a", "b", "c"], "") == await names(9)
    first, more = await names(2)
    assert (["a", "b"], (["c"], "")) == (first, await names(2, token=more))
    assert (["b", "c"], "") == await names(9, "tag:n=0 AND tag:all=yes")
    assert ([], "") == await names(9, "tag:n=2")


async def test_a_refused_mutation_changes_nothing_and_sends_nothing(edge: Any) -> None:
    story: Story = edge.story
    await story.create()
    version = await story.version()
    before = await chain(story)
    with refused("FAILED_PRECONDITION", "NO_RELEASE"):
        await story.promote(version.name, to_stage=PRODUCTION)
    with refused("INVALID_ARGUMENT", "REASON_REQUIRED"):
        await story.stub.RejectModelVersion(pb.RejectModelVersionRequest(name=version.name))
    assert (before, "NONE", []) == (await chain(story), await story.stage(version.name), await edge.emitted())
    assert (await story.promote(version.name)).passed
    assert ["model.stage_changed"] == await edge.emitted()


@pytest.mark.parametrize(
    "over",
    [pytest.param("memory", marks=pytest.mark.skip(reason="nothing is too large for memory")), "postgres"],
    indirect=True,
)
async def test_a_mutation_that_fails_at_its_last_write_leaves_none_of_the_others(edge: Any) -> None:
    """The stage has moved and the audit is written when the outbox refuses an event that Kafka could never take."""
    story: Story = edge.story
    await story.create()
    version = await story.version()
    before = await chain(story)
    with refused("INVALID_ARGUMENT", "EVENT_TOO_LARGE"):
        request = pb.RejectModelVersionRequest(name=version.name, reason="x" * (9 << 20), request_id="one")
        await story.stub.RejectModelVersion(request)
    assert (before, "NONE", []) == (await chain(story), await story.stage(version.name), await edge.emitted())
    again = pb.RejectModelVersionRequest(name=version.name, reason="short", request_id="one")
    await story.stub.RejectModelVersion(again)
    assert "REJECTED" == await story.stage(version.name)


async def test_versions_are_numbered_without_gaps_whatever_races_or_is_refused(story: Story) -> None:
    await story.create()

    async def add(bad: bool) -> int:
        declared = model_pb2.ModelVersion(artifacts=[FILE], parent_version="nonsense" if bad else "")
        request = pb.CreateModelVersionRequest(parent=story.model, model_version=declared)
        try:
            return numbers([(await story.stub.CreateModelVersion(request)).model_version])[0]
        except grpc.RpcError as error:
            return {"INVALID_NAME": 0}[from_rpc_error(error).reason]

    made = await asyncio.gather(*(add(i % 3 == 0) for i in range(12)))
    assert [0] * 4 + list(range(1, 9)) == sorted(made)
    with refused("NOT_FOUND", "UNKNOWN_MODEL_VERSION"):
        await story.stub.GetModelVersion(pb.GetModelVersionRequest(name=f"{story.model}/versions/9"))


async def test_versions_read_back(story: Story) -> None:
    await story.create()
    declared = model_pb2.ModelVersion(
        training_run="projects/p/runs/r",
        framework="torch",
        metrics={"auc": 0.75, "rows": 1000},
        feature_set="projects/p/featureSets/f/versions/1",
        training_dataset="projects/p/trainingSets/t",
        signature=model_pb2.Signature(
            inputs=[
                model_pb2.SignatureInput(name="v__a", data_type="DATA_TYPE_FLOAT64"),
                model_pb2.SignatureInput(name="v__b", data_type="DATA_TYPE_STRING", vocabulary=["x", "y"]),
            ]
        ),
        artifacts=[FILE, model_pb2.Artifact(name="weights.pt", sha256="cd" * 32)],
        golden_rows=model_pb2.GoldenRows(
            row_count=1, inputs=b"\0\0\x80?" * 2, scores=b"\0\0\0?", tolerance=0.25
        ),
        tags={"team": "ü"},
        description="ünïcode",
        parent_version=f"{story.model}/versions/1",
        registered_by="pipeline",
    )
    request = pb.CreateModelVersionRequest(parent=story.model, model_version=declared)
    made = (await story.stub.CreateModelVersion(request)).model_version
    assert made == (await story.stub.GetModelVersion(pb.GetModelVersionRequest(name=made.name))).model_version
    assert made.HasField("registered_at")
    expected = model_pb2.ModelVersion()
    expected.CopyFrom(declared)
    expected.name = f"{story.model}/versions/1"
    expected.stage = model_pb2.STAGE_NONE
    expected.artifact_state = model_pb2.ARTIFACT_STATE_PENDING
    expected.registered_at.CopyFrom(made.registered_at)
    assert expected == made


async def test_versions_are_listed_newest_first_by_stage_and_tags(story: Story) -> None:
    await story.create()
    for i in range(4):
        declared = model_pb2.ModelVersion(
            tags={"odd": str(i % 2)},
            artifacts=[
                model_pb2.Artifact(name="model.onnx", size_bytes=1, sha256=hashlib.sha256(b"x").hexdigest())
            ],
        )
        made = await story.stub.CreateModelVersion(
            pb.CreateModelVersionRequest(parent=story.model, model_version=declared)
        )
        await story.upload(made.model_version.name, b"x")
        if i > 1:
            await story.promote(made.model_version.name)

    async def listed(size: int, filter_: str = "", token: str = "") -> tuple[list[int], str]:
        page = await story.stub.ListModelVersions(
            pb.ListModelVersionsRequest(parent=story.model, page_size=size, filter=filter_, page_token=token)
        )
        return numbers(page.model_versions), page.next_page_token

    assert ([4, 3, 2, 1], "") == await listed(9)
    first, more = await listed(3)
    assert ([4, 3, 2], ([1], "")) == (first, await listed(3, token=more))
    assert ([4, 3], "") == await listed(9, "stage=STAGING")
    assert ([3], "") == await listed(9, "stage=STAGING AND tag:odd=0")


async def test_a_stage_moves_only_by_a_legal_step_and_says_who_moved_it(story: Story) -> None:
    await story.create()
    version = await story.version()
    moved = (await story.promote(version.name)).model_version
    assert STAGING == moved.stage
    assert moved.promoted_by and moved.HasField("promoted_at")
    assert (
        moved
        == (await story.stub.GetModelVersion(pb.GetModelVersionRequest(name=version.name))).model_version
    )
    reject = pb.RejectModelVersionRequest(name=version.name, reason="worse")
    await story.stub.RejectModelVersion(reject)
    for again in (story.stub.RejectModelVersion(reject), story.promote(version.name)):
        with refused("FAILED_PRECONDITION", "ILLEGAL_TRANSITION"):
            await again
    assert "REJECTED" == await story.stage(version.name)


async def test_an_artifact_is_stored_under_the_digest_it_was_declared_with(story: Story) -> None:
    await story.create()
    version = await story.version(b"right", upload=False)
    with refused("FAILED_PRECONDITION", "NOT_DECLARED"):
        await story.upload(version.name, b"right", artifact="other.onnx")
    with refused("DATA_LOSS", "DIGEST_MISMATCH"):
        await story.upload(version.name, b"wrong")
    with refused("FAILED_PRECONDITION", "ARTIFACTS_PENDING"):
        await story.download(version.name)
    for _ in range(2):
        ready = await story.upload(version.name, b"right")
        assert model_pb2.ARTIFACT_STATE_READY == ready.artifact_state
    assert b"right" == await story.download(version.name)
    assert ["REGISTER", "UPLOAD", "READY"] == [e.action for e in await story.audit()][1:]
    # Equal bytes of another version are another declaration.
    second = await story.version(b"right", upload=False)
    with refused("FAILED_PRECONDITION", "ARTIFACTS_PENDING"):
        await story.download(second.name)


async def test_releases_read_back_newest_first(story: Story) -> None:
    await story.create()
    version = await story.version(feature_set="projects/p/featureSets/f/versions/1")
    kinds = [
        None,
        model_pb2.Calibration(platt={"slope": 1.5, "intercept": -0.5}),
        model_pb2.Calibration(isotonic={"x": [0.0, 1.0], "y": [0.25, 0.75]}),
    ]
    fallback = model_pb2.Fallback(default_score=0.5)
    fallback.cached_max_age.FromSeconds(60)
    made = [
        await story.release(
            version.name, threshold=0.25, calibration=kind, fallback=fallback, segment_keys=["origin"]
        )
        for kind in kinds
    ]
    assert [1, 2, 3] == numbers(made)
    for release, kind in zip(made, kinds, strict=True):
        assert (kind or model_pb2.Calibration(), fallback, 0.25) == (
            release.calibration, release.fallback, release.threshold,
        )  # fmt: skip
        assert (version.name, "projects/p/featureSets/f/versions/1") == (
            release.model_version,
            release.feature_set,
        )
        assert release == (await story.stub.GetRelease(pb.GetReleaseRequest(name=release.name))).release
    first = await story.stub.ListReleases(pb.ListReleasesRequest(parent=story.model, page_size=2))
    rest = await story.stub.ListReleases(
        pb.ListReleasesRequest(parent=story.model, page_size=2, page_token=first.next_page_token)
    )
    assert [*reversed(made)] == [*first.releases, *rest.releases]


async def test_evidence_reads_back(story: Story) -> None:
    await story.create(
        gate_policy=model_pb2.GatePolicy(offline=[model_pb2.MetricThreshold(metric="auc", min=0.5)])
    )
    version = await story.version(auc=0.25)
    answers = [
        await story.promote(version.name),
        await story.promote(version.name, override=True, reason="known"),
    ]
    assert [1, 2] == numbers([a.evidence for a in answers])
    for answer in answers:
        proof = (await story.stub.GetEvidence(pb.GetEvidenceRequest(name=answer.evidence.name))).evidence
        assert answer.evidence == proof
        assert ("OFFLINE", version.name, False, 0.25) == (
            proof.kind, proof.model_version, proof.passed, proof.values["auc"],
        )  # fmt: skip
        assert ["FAILED: auc: 0.25, must be at least 0.5"] == list(proof.findings)
    with refused("NOT_FOUND", "UNKNOWN_EVIDENCE"):
        await story.stub.GetEvidence(pb.GetEvidenceRequest(name=f"{story.model}/evidence/3"))


async def test_the_audit_is_one_chain_per_model(story: Story) -> None:
    other = Story(story.stub, "other")
    for each in (story, other):
        await each.create()
    await asyncio.gather(*(each.version(upload=False) for each in (story, other) * 5))
    for each in (story, other):
        entries = await chain(each)
        assert ["CREATE"] + ["REGISTER"] * 5 == [e.action for e in entries]
        assert list(range(1, 7)) == [e.sequence for e in entries]
        assert first_break(each.model, entries) is None
        assert first_break(each.model, [*entries[:2], *entries[3:]]) is not None
    first = await story.stub.ListAuditEntries(pb.ListAuditEntriesRequest(parent=story.model, page_size=4))
    rest = await story.stub.ListAuditEntries(
        pb.ListAuditEntriesRequest(parent=story.model, page_size=4, page_token=first.next_page_token)
    )
    assert [6, 5, 4, 3, 2, 1] == [e.sequence for e in (*first.entries, *rest.entries)]


async def test_feature_sets_are_used_by_those_trained_on_them_and_those_released_with_them(
    story: Story,
) -> None:
    sets = [f"projects/p/featureSets/{name}/versions/1" for name in ("a", "b")]
    await story.create()
    version = await story.version(feature_set=sets[0])
    await story.version(b"else", feature_set="projects/q/featureSets/a/versions/1")
    await story.release(version.name, feature_set=sets[1])
    await story.promote(version.name)

    async def uses(size: int, token: str = "") -> tuple[list[Any], str]:
        request = pb.ListFeatureUsesRequest(parent="projects/p", page_size=size, page_token=token)
        page = await story.stub.ListFeatureUses(request)
        return list(page.uses), page.next_page_token

    expected = [pb.FeatureUse(feature_set=s, model_version=version.name, stage=STAGING) for s in sets]
    assert (expected, "") == await uses(9)
    first, more = await uses(1)
    assert (expected[:1], (expected[1:], "")) == (first, await uses(1, more))


def registration(story: Story, request_id: str, description: str = "") -> pb.CreateModelVersionRequest:
    declared = model_pb2.ModelVersion(artifacts=[FILE], description=description)
    return pb.CreateModelVersionRequest(parent=story.model, model_version=declared, request_id=request_id)


async def test_equal_calls_that_race_have_one_effect_and_one_answer(story: Story) -> None:
    await story.create()
    request = registration(story, "one")
    answers = await asyncio.gather(*(story.stub.CreateModelVersion(request) for _ in range(20)))
    assert all(answer == answers[0] for answer in answers)
    assert ["CREATE", "REGISTER"] == [e.action for e in await chain(story)]


async def test_another_body_under_a_known_id_is_refused_and_changes_nothing(story: Story) -> None:
    await story.create()
    first = await story.stub.CreateModelVersion(registration(story, "one"))
    before = await chain(story)
    with refused("INVALID_ARGUMENT", "REQUEST_ID_REUSED"):
        await story.stub.CreateModelVersion(registration(story, "one", "another"))
    assert before == await chain(story)
    assert first == await story.stub.CreateModelVersion(registration(story, "one"))
    second = await story.stub.CreateModelVersion(registration(story, ""))
    third = await story.stub.CreateModelVersion(registration(story, ""))
    assert [1, 2, 3] == numbers([a.model_version for a in (first, second, third)])
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST_ID"):
        await story.stub.CreateModelVersion(registration(story, "x" * 201))


async def test_a_refused_call_does_not_take_its_id(story: Story) -> None:
    with refused("NOT_FOUND", "UNKNOWN_MODEL"):
        await story.stub.CreateModelVersion(registration(story, "one"))
    await story.create()
    answer = await story.stub.CreateModelVersion(registration(story, "one", "said otherwise"))
    assert "said otherwise" == answer.model_version.description


UNREACHABLE = {
    "whoever locks a model keeps the others out": "a lock lives inside one call; what it is for is seen in the races of test_serving_at_the_edge.py",
    "a read sees what was committed since it began": "an RPC reads in one go",
    "a hold is noted only where the rollout still is": "only the ticker notes a hold",
    "undecided rollouts are those that no one paused": "only the ticker asks for them",
    "ids of requests are apart per caller": "in open mode all callers are one",
}


@pytest.mark.parametrize("law", UNREACHABLE)
def test_no_rpc_reaches(law: str) -> None:
    pytest.skip(UNREACHABLE[law])
