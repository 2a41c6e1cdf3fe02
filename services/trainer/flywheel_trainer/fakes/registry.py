"""The registry in memory."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, Mapping, Sequence
from typing import Any

from flywheel_common.errors import NotFound
from flywheel_common.grpc.errors import PeerUnavailable
from flywheel_common.storage.objects import ObjectStore
from flywheel_job.artifacts import WEIGHTS, artifact_key
from flywheel_trainer.fakes.requests import MemoryRequests, body_of
from flywheel_trainer.jobs.errors import DigestMismatch, UnknownModelVersion
from flywheel_trainer.pipelines.errors import RejectedVersion
from flywheel_trainer.pipelines.ports import Champion, VersionOrigin


class MemoryRegistry:
    """`RegistryPeer` with some models.

    The first rollout of a model is promoted at once, later ones start in shadow. `versions` and `files` are
    what the registry received; `gate_passes` is the decision of the offline gate. While `down` is set, no
    method answers.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self.versions: dict[str, Mapping[str, Any]] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.gate_passes = True
        self.down = False
        self._production = dict.fromkeys(models, "")
        self._releases: dict[str, Mapping[str, Any]] = {}
        self._rejected: set[str] = set()
        self._rollouts = 0
        self._requests = MemoryRequests()

    def add_model(self, model: str) -> None:
        self._production.setdefault(model, "")

    async def champion(self, model: str) -> Champion | None:
        self._check_up()
        _check_known(model, self._production)
        if not self._production[model]:
            return None
        release = self._production[model]
        return Champion(self._releases[release]["model_version"], release)

    async def origin(self, version: str) -> VersionOrigin:
        self._check_up()
        _check_known(version, self.versions)
        found = self.versions[version]
        return VersionOrigin(
            found["training_run"], found["training_dataset"], found["pipeline_run"], found["parent_version"]
        )

    def declared(self, version: str) -> dict[str, str]:
        """SHA-256 of a version's files by name. Raises NotFound."""
        self._check_up()
        _check_known(version, self.versions)
        return {name: sha256 for name, _, sha256 in self.versions[version]["artifacts"]}

    def download(self, version: str, artifact: str) -> bytes:
        """The bytes of a file. Raises DigestMismatch, NotFound."""
        declared = self.declared(version)
        _check_known((version, artifact), self.files)
        return _verified(self.files[version, artifact], declared.get(artifact))

    async def create_version(self, model: str, version: Mapping[str, Any], request_id: str) -> str:
        self._check_up()
        _check_known(model, self._production)

        def create() -> str:
            name = f"{model}/versions/{len(self.versions) + 1}"
            self.versions[name] = version
            return name

        return self._requests.once("create_version", request_id, body_of(model, version), create)

    async def upload(self, version: str, artifact: str, pieces: AsyncIterable[bytes]) -> None:
        declared = self.declared(version).get(artifact)
        self.files[version, artifact] = _verified(b"".join([piece async for piece in pieces]), declared)

    async def promote_to_staging(
        self, version: str, values: Mapping[str, float], findings: list[str], reason: str, request_id: str
    ) -> tuple[bool, list[str]]:
        self._check_up()
        _check_known(version, self.versions)

        def decide() -> tuple[bool, list[str]]:
            if self.gate_passes:
                return True, ["the gate passed"]
            self._rejected.add(version)
            return False, ["the gate failed"]

        body = body_of(version, values, findings, reason)
        return self._requests.once("promote_to_staging", request_id, body, decide)

    async def create_release(self, model: str, release: Mapping[str, Any], request_id: str) -> str:
        self._check_up()
        _check_known(release["model_version"], self.versions)
        if release["model_version"] in self._rejected:
            raise RejectedVersion(f"{release['model_version']} was rejected by the offline gate.")

        def create() -> str:
            name = f"{model}/releases/{len(self._releases) + 1}"
            self._releases[name] = release
            return name

        return self._requests.once("create_release", request_id, body_of(model, release), create)

    async def start_rollout(self, model: str, release: str, reason: str, request_id: str) -> tuple[str, str]:
        self._check_up()
        _check_known(release, self._releases)

        def start() -> tuple[str, str]:
            self._rollouts += 1
            self._production[model] = self._production[model] or release
            return f"{model}/rollouts/{self._rollouts}", "PENDING_LOAD"

        return self._requests.once("start_rollout", request_id, body_of(model, release, reason), start)

    def _check_up(self) -> None:
        if self.down:
            raise PeerUnavailable("registry")


class MemoryWeights:
    """`Weights` of the versions in a `MemoryRegistry`."""

    def __init__(self, registry: MemoryRegistry, objects: ObjectStore, bucket: str) -> None:
        self._registry, self._objects, self._bucket = registry, objects, bucket

    async def of(self, model_version: str) -> tuple[str, str] | None:
        try:
            declared = self._registry.declared(model_version).get(WEIGHTS)
        except NotFound as error:
            raise UnknownModelVersion.of(model_version) from error
        if declared is None:
            return None
        key = artifact_key(declared)
        if await self._objects.head(key) is None:
            await self._objects.put(key, self._registry.download(model_version, WEIGHTS))
        return f"s3://{self._bucket}/{key}", declared


def _check_known(name: object, known: Mapping[Any, object]) -> None:
    if name not in known:
        raise NotFound(f"{name} does not exist.")


def _verified(data: bytes, declared: str | None) -> bytes:
    if hashlib.sha256(data).hexdigest() != declared:
        raise DigestMismatch("The bytes do not match the declared digest.")
    return data
