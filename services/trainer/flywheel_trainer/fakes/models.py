"""Models and evaluations of the registry in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flywheel_common.errors import FlywheelError, NotFound
from flywheel_common.grpc.errors import PeerUnavailable
from flywheel_trainer.fakes.requests import MemoryRequests, body_of
from flywheel_trainer.jobs.errors import UnknownModelVersion
from flywheel_trainer.jobs.models import FoundModel


class MemoryModels:
    """`RegistryModels` with the versions in `known`; `serving` is the champion of each model, or the error
    that reading it raises.

    While `down` is set, no method answers.
    """

    def __init__(self) -> None:
        self.known: dict[str, FoundModel] = {}
        self.serving: dict[str, FoundModel | FlywheelError] = {}
        self.down = False

    async def version(self, name: str) -> FoundModel:
        self._check_up()
        if name not in self.known:
            raise UnknownModelVersion.of(name)
        return self.known[name]

    async def champion(self, model: str) -> FoundModel | None:
        self._check_up()
        found = self.serving.get(model)
        if isinstance(found, FlywheelError):
            raise found
        return found

    def _check_up(self) -> None:
        if self.down:
            raise PeerUnavailable("registry")


class MemoryEvaluations:
    """`Evaluations` of the versions in a `MemoryModels`; `recorded` has those of each version."""

    def __init__(self, models: MemoryModels) -> None:
        self.recorded: dict[str, list[dict[str, Any]]] = {}
        self._models, self._requests = models, MemoryRequests()

    async def record(
        self, version: str, values: Mapping[str, float], champion: str, findings: list[str], request_id: str
    ) -> str:
        if self._models.down:
            raise PeerUnavailable("registry")
        if version not in self._models.known:
            raise NotFound(f"{version} does not exist.")

        def add() -> str:
            of_version = self.recorded.setdefault(version, [])
            of_version.append({"values": dict(values), "champion": champion, "findings": findings})
            return f"{version.rpartition('/versions/')[0]}/evidence/{len(of_version)}"

        body = body_of(version, dict(values), champion, findings)
        return self._requests.once("record", request_id, body, add)
