"""Every mutation of the registry under one request_id: the first answer again, no second effect, and another body is refused."""

from __future__ import annotations

from typing import Any

from flywheel_common.testing.row_counts import row_counts
from flywheel_protos.registry.v1 import model_pb2
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.testing import Story, refused


async def test_a_request_id_stands_for_one_request_of_its_method(story: Story, database: str) -> None:
    stub = story.stub

    async def once(method: str, request: Any, **changed: Any) -> Any:
        """The answer to a request that is sent three times, the last time with something changed."""
        request.request_id = "one"
        call = getattr(stub, method)
        first = await call(request)
        before = await row_counts(database)
        assert first == await call(request), method
        other = type(request)()
        other.CopyFrom(request)
        for name, value in changed.items():
            getattr(other, name).CopyFrom(value) if not isinstance(value, str) else setattr(
                other, name, value
            )
        with refused("INVALID_ARGUMENT", "REQUEST_ID_REUSED"):
            await call(other)
        assert before == await row_counts(database), method
        return first

    plain, owned = model_pb2.Model(), model_pb2.Model(owner="bob")
    await once(
        "CreateModel",
        pb.CreateModelRequest(parent="projects/default", model_id="late", model=plain),
        model=owned,
    )
    update = pb.UpdateModelRequest(model=model_pb2.Model(name=story.model, owner="ann"))
    update.update_mask.paths.append("owner")
    await once("UpdateModel", update, model=model_pb2.Model(name=story.model, owner="bob"))
    file = model_pb2.Artifact(name="model.onnx", size_bytes=1, sha256="a" * 64)
    declared = model_pb2.ModelVersion(description="a", artifacts=[file])
    await once(
        "CreateModelVersion",
        pb.CreateModelVersionRequest(parent=story.model, model_version=declared),
        model_version=model_pb2.ModelVersion(description="b"),
    )
    rejected = f"{story.model}/versions/1"
    await once("RejectModelVersion", pb.RejectModelVersionRequest(name=rejected, reason="a"), reason="b")
    first, second = await story.version(b"one"), await story.version(b"two")
    for version in (first, second):
        request = pb.PromoteModelVersionRequest(name=version.name)
        if version is first:
            await once("PromoteModelVersion", request, reason="another")
        else:
            await stub.PromoteModelVersion(request)
    release = model_pb2.Release(model_version=first.name, threshold=0.5)
    other = model_pb2.Release(model_version=first.name, threshold=0.75)
    champion = await once(
        "CreateRelease", pb.CreateReleaseRequest(parent=story.model, release=release), release=other
    )
    start = pb.StartRolloutRequest(parent=story.model, challenger_release=champion.release.name, reason="a")
    await once("StartRollout", start, reason="b")
    challenger = await story.release(second.name)
    rollout = (await story.start(challenger.name)).name
    await once("PauseRollout", pb.PauseRolloutRequest(name=rollout, reason="a"), reason="b")
    await once("ResumeRollout", pb.ResumeRolloutRequest(name=rollout, reason="a"), reason="b")
    await once("SkipRolloutStep", pb.SkipRolloutStepRequest(name=rollout, reason="a"), reason="b")
    await once("AbortRollout", pb.AbortRolloutRequest(name=rollout, reason="a"), reason="b")
