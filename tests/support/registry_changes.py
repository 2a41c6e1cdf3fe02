"""A load of changes to a registry, whose outcomes are known one by one.

Every change carries a mark that its audit entry and its event contain, by which a test finds them.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc

from flywheel_common.grpc.channel import from_rpc_error
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, search_pb2

CALL_SECONDS = 5.0
LOST = 0.05
"""Share of the changes that are sent once only: their callers never learn what became of them."""


@dataclass
class Change:
    """One change: its kind and mark, and what its caller knows about it."""

    kind: str
    model: str
    mark: str
    outcome: str = "UNKNOWN"
    """`DONE`, the reason of a refusal, or `UNKNOWN` when no answer came."""
    answer: Any = None
    tries: int = 0


class Changes:
    """Callers that change models of a registry; `made` holds all changes in the order of their start.

    `promoted` are models with `versions` versions, each with a release; `rolled` have one staged version with
    a release, and no champion.
    """

    def __init__(
        self, stub: Any, promoted: list[str], rolled: list[str], versions: int, seed: int, callers: int
    ) -> None:
        self._stub = stub
        self._promoted = promoted
        self._rolled = rolled
        self._versions = versions
        self._seed = seed
        self._callers = callers
        self._marks = count(1)
        self._aliased: Counter[tuple[str, int]] = Counter()
        self._next_version = dict.fromkeys(promoted, 0)
        self.made: list[Change] = []
        self.done: Counter[str] = Counter()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all callers; at the end of the block each one finishes the change that it is making."""
        stop = asyncio.Event()
        places = [(model, place) for model in self._promoted + self._rolled for place in range(self._callers)]
        async with asyncio.TaskGroup() as group:
            for model, place in places:
                group.create_task(self._caller(model, place, stop))
            try:
                yield
            finally:
                stop.set()

    async def _caller(self, model: str, place: int, stop: asyncio.Event) -> None:
        dice = random.Random(f"{self._seed} {model.rpartition('-')[2]} {place}")
        kinds: list[Callable[[str, int], Awaitable[Change]]] = [self._register, self._alias, self._tag]
        kinds += [self._policy, self._policy]
        own = [self._promote, self._promote, self._roll_back]
        kinds += own if model in self._promoted else [self._rollout, self._rollout]
        while not stop.is_set():
            change = await dice.choice(kinds)(model, place)
            if change.kind == "START" and change.outcome == "DONE":
                await self._abort(model, change.answer.rollout.name, dice)

    def _new(self, kind: str, model: str) -> Change:
        number = next(self._marks)
        change = Change(kind, model, f"mark-{number:06d}")
        self.made.append(change)
        return change

    async def _make(self, change: Change, method: Any, request: Any) -> Change:
        """Send a change with its mark as request id until its outcome is known."""
        request.request_id = change.mark
        once = random.Random(f"{self._seed} {change.mark}").random() < LOST
        while True:
            change.tries += 1
            try:
                change.answer = await method(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                mapped = from_rpc_error(error)
                if not (mapped.retryable or mapped.code is grpc.StatusCode.DEADLINE_EXCEEDED):
                    change.outcome = mapped.reason
                    return change
                if once:
                    return change
                await asyncio.sleep(0.05)
            else:
                change.outcome = "DONE"
                self.done[change.kind] += 1
                return change

    async def _register(self, model: str, place: int) -> Change:
        change = self._new("REGISTER", model)
        version = model_pb2.ModelVersion(description=change.mark, metrics={"auc": 0.5})
        version.artifacts.add(name="model.onnx", size_bytes=1, sha256="ab" * 32)
        request = registry_pb2.CreateModelVersionRequest(parent=model, model_version=version)
        return await self._make(change, self._stub.CreateModelVersion, request)

    async def _alias(self, model: str, place: int) -> Change:
        change = self._new("ALIAS", model)
        # Never the version that the alias has: this would change nothing.
        self._aliased[model, place] += 1
        request = search_pb2.SetModelAliasRequest(
            parent=model,
            alias_id=f"a{place}",
            model_version=f"{model}/versions/{1 + self._aliased[model, place] % self._versions}",
            reason=change.mark,
        )
        return await self._make(change, self._stub.SetModelAlias, request)

    async def _tag(self, model: str, place: int) -> Change:
        change = self._new("TAG", model)
        request = search_pb2.TagModelVersionRequest(
            name=f"{model}/versions/1", set={f"caller-{place}": change.mark}
        )
        return await self._make(change, self._stub.TagModelVersion, request)

    async def _policy(self, model: str, place: int) -> Change:
        change = self._new("UPDATE", model)
        # A number without a leading zero: the mark of a policy change.
        labelled = 1_000_000 + int(change.mark.removeprefix("mark-"))
        wanted = model_pb2.Model(
            name=model, rollout_policy=model_pb2.RolloutPolicy(shadow_min_labelled=labelled)
        )
        request = registry_pb2.UpdateModelRequest(model=wanted)
        request.update_mask.paths.append("rollout_policy")
        return await self._make(change, self._stub.UpdateModel, request)

    async def _promote(self, model: str, place: int) -> Change:
        change = self._new("PROMOTE", model)
        self._next_version[model] = number = min(self._next_version[model] + 1, self._versions)
        request = registry_pb2.PromoteModelVersionRequest(
            name=f"{model}/versions/{number}",
            to_stage=model_pb2.STAGE_PRODUCTION,
            override=True,
            reason=change.mark,
        )
        return await self._make(change, self._stub.PromoteModelVersion, request)

    async def _roll_back(self, model: str, place: int) -> Change:
        change = self._new("ROLLBACK", model)
        request = registry_pb2.RollbackModelRequest(name=model, reason=change.mark)
        return await self._make(change, self._stub.RollbackModel, request)

    async def _rollout(self, model: str, place: int) -> Change:
        change = self._new("START", model)
        request = registry_pb2.StartRolloutRequest(
            parent=model, challenger_release=f"{model}/releases/1", reason=change.mark
        )
        return await self._make(change, self._stub.StartRollout, request)

    async def _abort(self, model: str, rollout: str, dice: random.Random) -> None:
        await asyncio.sleep(dice.uniform(0.0, 0.02))
        while True:
            change = self._new("ABORT", model)
            request = registry_pb2.AbortRolloutRequest(name=rollout, reason=change.mark)
            # A rollout that is not aborted would block its model for the rest of the load.
            if (await self._make(change, self._stub.AbortRollout, request)).outcome != "UNKNOWN":
                return
