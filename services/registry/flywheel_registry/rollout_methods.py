"""The methods of RegistryService about releases: bundling them, rolling them out, rolling back."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from flywheel_common.context import left_seconds
from flywheel_common.grpc.auth import OPERATE, actor, require_role
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry import (
    convert_models,
    convert_policies,
    convert_releases,
    convert_rollouts,
    convert_serving,
)
from flywheel_registry.absent import find_model, find_release, find_rollout
from flywheel_registry.catalog import Catalog
from flywheel_registry.mutating import Mutating
from flywheel_registry.names import ModelName, ReleaseName, RolloutName
from flywheel_registry.ports import Records
from flywheel_registry.rollback import Rollbacks
from flywheel_registry.rollouts import Rollouts

ANSWER_RESERVE_SECONDS = 0.25
"""What a waiting rollback keeps of its caller's deadline, to answer in time."""


class RolloutMethods(Mutating):
    """Part of the servicer."""

    _catalog: Catalog
    _rollouts: Rollouts
    _rollbacks: Rollbacks
    _rollback_wait: float

    # ---------------------------------------------------------------------------------------------- releases

    async def CreateRelease(self, request: pb.CreateReleaseRequest, context: Any) -> pb.CreateReleaseResponse:
        bundle = convert_releases.release(request.release, str(ModelName.parse(request.parent)))

        async def effect(records: Records) -> pb.CreateReleaseResponse:
            release = await self._catalog.create_release(records, bundle, actor())
            return pb.CreateReleaseResponse(release=convert_releases.release_to_proto(release))

        return await self._mutate("CreateRelease", request, pb.CreateReleaseResponse, effect)

    async def GetRelease(self, request: pb.GetReleaseRequest, context: Any) -> pb.GetReleaseResponse:
        async with self._store.reading() as records:
            release = await find_release(records, ReleaseName.parse(request.name))
        return pb.GetReleaseResponse(release=convert_releases.release_to_proto(release))

    async def ListReleases(self, request: pb.ListReleasesRequest, context: Any) -> pb.ListReleasesResponse:
        parent = str(ModelName.parse(request.parent))
        async with self._store.reading() as records:
            await find_model(records, parent)
            page = await self._catalog.list_releases(records, parent, request.page_size, request.page_token)
        return pb.ListReleasesResponse(
            releases=map(convert_releases.release_to_proto, page.items), next_page_token=page.next_page_token
        )

    # ---------------------------------------------------------------------------------------------- rollouts

    async def StartRollout(self, request: pb.StartRolloutRequest, context: Any) -> pb.StartRolloutResponse:
        model, challenger = (
            str(ModelName.parse(request.parent)),
            ReleaseName.parse(request.challenger_release),
        )
        policy = convert_policies.rollout_policy(request.policy) if request.HasField("policy") else None

        async def effect(records: Records) -> pb.StartRolloutResponse:
            rollout = await self._rollouts.start(records, model, challenger, policy, request.reason, actor())
            return pb.StartRolloutResponse(rollout=convert_rollouts.rollout_to_proto(rollout))

        return await self._mutate("StartRollout", request, pb.StartRolloutResponse, effect)

    async def GetRollout(self, request: pb.GetRolloutRequest, context: Any) -> pb.GetRolloutResponse:
        async with self._store.reading() as records:
            rollout = await find_rollout(records, RolloutName.parse(request.name))
        return pb.GetRolloutResponse(rollout=convert_rollouts.rollout_to_proto(rollout))

    async def ListRollouts(self, request: pb.ListRolloutsRequest, context: Any) -> pb.ListRolloutsResponse:
        parent = str(ModelName.parse(request.parent))
        async with self._store.reading() as records:
            await find_model(records, parent)
            page = await self._catalog.list_rollouts(records, parent, request.page_size, request.page_token)
        return pb.ListRolloutsResponse(
            rollouts=map(convert_rollouts.rollout_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def PauseRollout(self, request: pb.PauseRolloutRequest, context: Any) -> pb.PauseRolloutResponse:
        name = RolloutName.parse(request.name)

        async def effect(records: Records) -> pb.PauseRolloutResponse:
            rollout = await self._rollouts.pause(records, name, request.reason, actor())
            return pb.PauseRolloutResponse(rollout=convert_rollouts.rollout_to_proto(rollout))

        return await self._mutate("PauseRollout", request, pb.PauseRolloutResponse, effect)

    async def ResumeRollout(self, request: pb.ResumeRolloutRequest, context: Any) -> pb.ResumeRolloutResponse:
        name = RolloutName.parse(request.name)

        async def effect(records: Records) -> pb.ResumeRolloutResponse:
            rollout = await self._rollouts.resume(records, name, request.reason, actor())
            return pb.ResumeRolloutResponse(rollout=convert_rollouts.rollout_to_proto(rollout))

        return await self._mutate("ResumeRollout", request, pb.ResumeRolloutResponse, effect)

    async def AbortRollout(self, request: pb.AbortRolloutRequest, context: Any) -> pb.AbortRolloutResponse:
        name = RolloutName.parse(request.name)

        async def effect(records: Records) -> pb.AbortRolloutResponse:
            rollout = await self._rollouts.abort(records, name, request.reason, actor())
            return pb.AbortRolloutResponse(rollout=convert_rollouts.rollout_to_proto(rollout))

        return await self._mutate("AbortRollout", request, pb.AbortRolloutResponse, effect)

    async def SkipRolloutStep(
        self, request: pb.SkipRolloutStepRequest, context: Any
    ) -> pb.SkipRolloutStepResponse:
        name = RolloutName.parse(request.name)
        require_role(OPERATE, "Skipping a rollout step")

        async def effect(records: Records) -> pb.SkipRolloutStepResponse:
            rollout = await self._rollouts.skip(records, name, request.reason, actor())
            return pb.SkipRolloutStepResponse(rollout=convert_rollouts.rollout_to_proto(rollout))

        return await self._mutate("SkipRolloutStep", request, pb.SkipRolloutStepResponse, effect)

    async def RollbackModel(self, request: pb.RollbackModelRequest, context: Any) -> pb.RollbackModelResponse:
        began, model = time.monotonic(), str(ModelName.parse(request.name))
        to_release = ReleaseName.parse(request.to_release) if request.to_release else None

        async def effect(records: Records) -> pb.RollbackModelResponse:
            await self._rollbacks.roll_back(records, model, to_release, request.reason, actor())
            return pb.RollbackModelResponse(
                model=convert_models.model_to_proto(await find_model(records, model))
            )

        answer = await self._mutate("RollbackModel", request, pb.RollbackModelResponse, effect)
        async with self._store.reading() as records:
            generation = (await records.routing(model)).generation
        left = left_seconds() if context.time_remaining() is not None else self._rollback_wait
        wait = max(0.0, (self._rollback_wait if left is None else left) - ANSWER_RESERVE_SECONDS)
        said = await self._rollbacks.acknowledged(model, generation, since=began, timeout_seconds=wait)
        answer.complete = said.complete
        answer.elapsed.FromTimedelta(timedelta(seconds=said.seconds))
        answer.gateways.extend(map(convert_serving.gateway_to_proto, said.gateways))
        return answer
