"""The methods of RegistryService about releases and rollouts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from flywheel_common.grpc.auth import actor
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_registry.api import convert_policies, convert_releases, convert_rollouts, listing
from flywheel_registry.api.mutations import Mutations, Response
from flywheel_registry.artifacts.check import VersionCheck
from flywheel_registry.gates.verdicts import ExperimentVerdicts
from flywheel_registry.models.lookups import find_model
from flywheel_registry.models.names import ModelName, VersionName
from flywheel_registry.releases.catalog import ReleaseCatalog
from flywheel_registry.releases.errors import WrongModel
from flywheel_registry.releases.lookups import find_release
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.releases.ports import ReleaseRecords
from flywheel_registry.rollouts.lifecycle import RolloutLifecycle
from flywheel_registry.rollouts.loading import GATEWAY_SECONDS
from flywheel_registry.rollouts.lookups import find_rollout
from flywheel_registry.rollouts.names import RolloutName
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.rollouts.rollout import Rollout
from flywheel_registry.rollouts.start import RolloutStart
from flywheel_registry.serving.ports import Gateways

RolloutChange = Callable[[RolloutRecords, RolloutName, str, str], Awaitable[Rollout]]
"""A use case called with (records, rollout, reason, actor)."""


class RolloutMethods(Mutations):
    """Part of the servicer."""

    _releases: ReleaseCatalog
    _checks: VersionCheck
    _experiment_verdicts: ExperimentVerdicts
    _rollout_start: RolloutStart
    _rollout_lifecycle: RolloutLifecycle
    _gateways: Gateways

    # ---------------------------------------------------------------------------------------------- releases

    async def CreateRelease(self, request: pb.CreateReleaseRequest, context: Any) -> pb.CreateReleaseResponse:
        declared = convert_releases.release(request.release, str(ModelName.parse(request.parent)))
        # Before the transaction, because it asks the feature service.
        version = VersionName.numbered(declared.model, declared.version)
        await self._checks.check_feature_set(version, declared.feature_set)

        async def effect(records: ReleaseRecords) -> pb.CreateReleaseResponse:
            release = await self._releases.create_release(records, declared, actor())
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
            page = await listing.list_releases(records, parent, request.page_size, request.page_token)
        releases = map(convert_releases.release_to_proto, page.items)
        return pb.ListReleasesResponse(releases=releases, next_page_token=page.next_page_token)

    # ---------------------------------------------------------------------------------------------- rollouts

    async def StartRollout(self, request: pb.StartRolloutRequest, context: Any) -> pb.StartRolloutResponse:
        model = str(ModelName.parse(request.parent))
        challenger = ReleaseName.parse(request.challenger_release)
        if challenger.parent != model:
            raise WrongModel(f"{challenger} is not a release of {model}.")
        policy = convert_policies.rollout_policy(request.policy) if request.HasField("policy") else None
        # Before the transaction, because it asks the monitor.
        experiments = await self._experiment_verdicts.of_release(challenger)

        async def effect(records: RolloutRecords) -> pb.StartRolloutResponse:
            rollout = await self._rollout_start.start(
                records,
                challenger,
                policy,
                request.reason,
                actor(),
                override=request.override,
                experiments=experiments,
            )
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
            page = await listing.list_rollouts(records, parent, request.page_size, request.page_token)
        rollouts = map(convert_rollouts.rollout_to_proto, page.items)
        return pb.ListRolloutsResponse(rollouts=rollouts, next_page_token=page.next_page_token)

    async def PauseRollout(self, request: pb.PauseRolloutRequest, context: Any) -> pb.PauseRolloutResponse:
        return await self._change(request, pb.PauseRolloutResponse, self._rollout_lifecycle.pause)

    async def ResumeRollout(self, request: pb.ResumeRolloutRequest, context: Any) -> pb.ResumeRolloutResponse:
        return await self._change(request, pb.ResumeRolloutResponse, self._rollout_lifecycle.resume)

    async def AbortRollout(self, request: pb.AbortRolloutRequest, context: Any) -> pb.AbortRolloutResponse:
        return await self._change(request, pb.AbortRolloutResponse, self._rollout_lifecycle.abort)

    async def SkipRolloutStep(
        self, request: pb.SkipRolloutStepRequest, context: Any
    ) -> pb.SkipRolloutStepResponse:
        # Before the transaction, because it is read by another connection.
        gateways = await self._gateways.recent(GATEWAY_SECONDS)

        async def skip(records: RolloutRecords, name: RolloutName, reason: str, by: str) -> Rollout:
            return await self._rollout_lifecycle.skip(records, name, gateways, reason, by)

        return await self._change(request, pb.SkipRolloutStepResponse, skip)

    async def ConcludeRollout(
        self, request: pb.ConcludeRolloutRequest, context: Any
    ) -> pb.ConcludeRolloutResponse:
        decision = convert_rollouts.verdict(request.verdict)

        async def conclude(records: RolloutRecords, name: RolloutName, reason: str, by: str) -> Rollout:
            return await self._rollout_lifecycle.conclude(records, name, decision, reason, by)

        return await self._change(request, pb.ConcludeRolloutResponse, conclude)

    async def _change(self, request: Any, response: type[Response], change: RolloutChange) -> Response:
        """Run a mutating method whose request names a rollout and a reason."""
        name = RolloutName.parse(request.name)

        async def effect(records: RolloutRecords) -> Response:
            rollout = await change(records, name, request.reason, actor())
            return response(rollout=convert_rollouts.rollout_to_proto(rollout))

        method = response.DESCRIPTOR.name.removesuffix("Response")
        return await self._mutate(method, request, response, effect)
