"""Every mutation of the registry is idempotent by request_id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flywheel_common.grpc.channel import channel
from flywheel_protos.registry.v1 import (
    approval_pb2,
    artifact_pb2,
    model_pb2,
    registry_pb2_grpc,
    search_pb2,
    webhook_pb2,
)
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.config import RegistrySettings
from tests.support.builders.registry import ModelClient, gateway_with
from tests.support.row_counts import row_digests
from tests.support.servers.registry import NO_TICKS, refused, running_registry

MUTATIONS = {
    method.name
    for method in pb.DESCRIPTOR.services_by_name["RegistryService"].methods
    if "request_id" in method.input_type.fields_by_name
}


class Repeater:
    """Sends a mutation three times, the last time with another body."""

    def __init__(self, stub: Any, database: str) -> None:
        self._stub = stub
        self._database = database
        self.methods: set[str] = set()

    async def __call__(self, method: str, request: Any, **changed: Any) -> Any:
        """Return the first answer. Asserts that the repeats change nothing."""
        self.methods.add(method)
        request.request_id = "one"
        call = getattr(self._stub, method)
        first = await call(request)
        before = await row_digests(self._database)
        assert _comparable(first) == _comparable(await call(request)), method
        other = type(request)()
        other.CopyFrom(request)
        for name, value in changed.items():
            getattr(other, name).CopyFrom(value) if not isinstance(value, str) else setattr(
                other, name, value
            )
        with refused("INVALID_ARGUMENT", "REQUEST_ID_REUSED"):
            await call(other)
        assert before == await row_digests(self._database), method
        return first


def _comparable(answer: Any) -> Any:
    """Return an answer without the time that gateways took, which differs between repeats."""
    if isinstance(answer, pb.RollbackModelResponse):
        return answer.model, answer.complete, list(answer.gateways)
    return answer


async def test_every_mutation_is_idempotent_by_its_request_id(
    settings: Callable[..., RegistrySettings], database: str
) -> None:
    # A tick could change a rollout between two reads of the database.
    async with running_registry(settings(**NO_TICKS, webhook_hosts=("hooks.example",))) as stub:
        client, once = ModelClient(stub), Repeater(stub, database)
        plain, owned = model_pb2.Model(), model_pb2.Model(owner="bob")
        create = pb.CreateModelRequest(parent="projects/default", model_id="late", model=plain)
        await once("CreateModel", create, model=owned)
        update = pb.UpdateModelRequest(model=model_pb2.Model(name=client.model, owner="ann"))
        update.update_mask.paths.append("owner")
        await once("UpdateModel", update, model=model_pb2.Model(name=client.model, owner="bob"))
        file = model_pb2.Artifact(name="model.onnx", size_bytes=1, sha256="a" * 64)
        declare = pb.CreateModelVersionRequest(
            parent=client.model, model_version=model_pb2.ModelVersion(description="a", artifacts=[file])
        )
        await once(
            "CreateModelVersion",
            declare,
            model_version=model_pb2.ModelVersion(description="b", artifacts=[file]),
        )
        rejected = f"{client.model}/versions/1"
        await once("RejectModelVersion", pb.RejectModelVersionRequest(name=rejected, reason="a"), reason="b")
        deleted = pb.DeleteModelVersionRequest(name=rejected, reason="a")
        await once("DeleteModelVersion", deleted, reason="b")
        restored = artifact_pb2.RestoreModelVersionRequest(name=rejected, reason="a")
        await once("RestoreModelVersion", restored, reason="b")

        first, second, third = [await client.version() for _ in range(3)]
        measured = pb.RecordEvaluationRequest(name=first.name, values={"auc": 0.8})
        await once("RecordEvaluation", measured, champion_version=second.name)
        await _catalog_mutations(stub, once, client, second.name)
        await once("PromoteModelVersion", pb.PromoteModelVersionRequest(name=first.name), reason="another")
        for version in (second, third):
            await client.promote(version.name)
        champion = (
            await once(
                "CreateRelease",
                pb.CreateReleaseRequest(
                    parent=client.model, release=model_pb2.Release(model_version=first.name, threshold=0.5)
                ),
                release=model_pb2.Release(model_version=first.name, threshold=0.75),
            )
        ).release
        start = pb.StartRolloutRequest(parent=client.model, challenger_release=champion.name, reason="a")
        first_rollout = (await once("StartRollout", start, reason="b")).rollout.name
        await client.skip(first_rollout)

        rollout = (await client.start((await client.release(second.name)).name)).name
        await once("PauseRollout", pb.PauseRolloutRequest(name=rollout, reason="a"), reason="b")
        await once("ResumeRollout", pb.ResumeRolloutRequest(name=rollout, reason="a"), reason="b")
        async with gateway_with(stub, (await client.rollout(rollout)).challenger_release):
            await once("SkipRolloutStep", pb.SkipRolloutStepRequest(name=rollout, reason="a"), reason="b")
        await once("AbortRollout", pb.AbortRolloutRequest(name=rollout, reason="a"), reason="b")

        holdback = model_pb2.Variant(name="hold", release=champion.name, percent=1)
        variants = pb.SetModelVariantsRequest(name=client.model, variants=[holdback], reason="a")
        await once("SetModelVariants", variants, reason="b")

        ab_test = model_pb2.RolloutPolicy(canary_percents=[50], until_verdict=True)
        start = (await client.release(second.name)).name
        rollout = (await client.start(start, policy=ab_test, reason="a")).name
        await client.skip(rollout)
        verdict = pb.ConcludeRolloutRequest(name=rollout, verdict=pb.EXPERIMENT_VERDICT_ROLL_BACK, reason="a")
        await once("ConcludeRollout", verdict, reason="b")

        await client.release(third.name)
        await client.promote(third.name, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="a")
        back = pb.RollbackModelRequest(name=client.model, reason="a")
        answer = await once("RollbackModel", back, to_release=champion.name)
        assert champion.name == answer.model.production_release

        spare = (await client.release(first.name)).name
        unused = artifact_pb2.DeleteReleaseRequest(name=spare, reason="a")
        await once("DeleteRelease", unused, reason="b")
        await once("RestoreRelease", artifact_pb2.RestoreReleaseRequest(name=spare, reason="a"), reason="b")
        retired = artifact_pb2.DeleteModelRequest(name=client.model, reason="a", stop_serving=True)
        await once("DeleteModel", retired, reason="b")
        await once("RestoreModel", artifact_pb2.RestoreModelRequest(name=client.model), reason="b")
    assert MUTATIONS == once.methods


async def _catalog_mutations(stub: Any, once: Repeater, client: ModelClient, version: str) -> None:
    """Aliases, tags, approvals and webhooks."""
    alias = search_pb2.SetModelAliasRequest(parent=client.model, alias_id="best", model_version=version)
    named = (await once("SetModelAlias", alias, reason="b")).alias.name
    await once("DeleteModelAlias", search_pb2.DeleteModelAliasRequest(name=named), reason="b")
    tag = search_pb2.TagModelVersionRequest(name=version, set={"k": "v"})
    await once("TagModelVersion", tag, name=f"{client.model}/versions/2")
    async with channel(stub.address, client_name="author", health_check=False) as opened:
        authored = await ModelClient(registry_pb2_grpc.RegistryServiceStub(opened)).version()
    approval = approval_pb2.ApproveModelVersionRequest(name=authored.name, reason="a")
    await once("ApproveModelVersion", approval, reason="b")
    hook = webhook_pb2.Webhook(url="http://hooks.example/", secret="0123456789abcdef")
    create = webhook_pb2.CreateWebhookRequest(parent="projects/default", webhook_id="ops", webhook=hook)
    made = (await once("CreateWebhook", create, webhook_id="other")).webhook.name
    gone = "projects/default/webhooks/other"
    await once("DeleteWebhook", webhook_pb2.DeleteWebhookRequest(name=made), name=gone)
