"""Rollbacks under predictions: two gateway processes with a real Triton, and the registry as a process.

A rollback is acknowledged when both gateways have reported that they serve the former release. From then on
no answer may come from the bad one. Before and after, an answer's score is that of the release it names.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import grpc

import flywheel as fw
from bench import measure
from bench.common.deployment import Deployment
from flywheel_local.backends import Backends
from flywheel_protos.events.v1.prediction_pb2 import PREDICTION_SOURCE_MODEL
from flywheel_protos.inference.v1 import inference_pb2_grpc
from flywheel_protos.registry.v1 import model_pb2, registry_pb2
from tests.support.builders.inference import MODEL, expected_score
from tests.support.peers.inference import RegistryServicer
from tests.support.prediction_load import predict_request
from tests.support.servers.inference_processes import GatewayProcess, W

ROLLBACKS = 6
RATE = 200.0
QUIET_SECONDS = 1.5
"""Predictions before and after each rollback."""
DEADLINE = 1.0
BIASES = (0.0, 1.0)
"""What distinguishes the two releases' models."""
TOLERANCE = 1e-4
NAMES = (
    "rollback under 200 predictions/s, 2 gateways: longest, call to last acknowledgement",
    "rollback under 200 predictions/s, 2 gateways: failed or degraded predictions",
    "rollback under 200 predictions/s, 2 gateways: answers of a mixed or a rolled back release",
    "resident memory of the registry after the rollbacks",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One prediction. `release` is empty when it failed or was degraded; `right`: the score fits."""

    sent: float
    release: str = ""
    right: bool = True


def run(deployment: Deployment, only: str) -> Iterator[measure.Row]:
    """Yield all rows when `only` is in the name of one."""
    if not any(only in name for name in NAMES):
        return
    seconds, failed, mixed, predictions = asyncio.run(_measure(deployment))
    measure.console.print(f"  {ROLLBACKS} rollbacks: {seconds}, {predictions} predictions")
    yield measure.row(NAMES[0], max(seconds), "s", measure.at_most(2.0, of_value=True))
    yield measure.row(NAMES[1], failed, "predictions", measure.at_most(0, of_value=True))
    yield measure.row(NAMES[2], mixed, "predictions", measure.at_most(0, of_value=True))
    yield measure.row(NAMES[3], deployment.resident_mib, "MiB", measure.at_most(150, of_value=True))


async def _measure(deployment: Deployment) -> tuple[list[float], int, int, int]:
    """Return the seconds of each rollback, and the number of failed, mixed and all predictions."""
    folder = deployment.folder / "rollback"
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(fw.Client(registry=deployment.address))
        releases = [await _release(client, number, bias) for number, bias in enumerate(BIASES, 1)]
        backends = stack.enter_context(
            Backends(
                {"triton", "kafka", "redis"}, directory=folder / "data", log=folder / "log", durable=False
            )
        )
        gateways = []
        for name in ("one", "two"):
            gateway = GatewayProcess(
                name,
                folder,
                registry_address=deployment.address,
                feature_address=deployment.feature.address,
                triton_url=backends.triton.grpc_url,
                kafka_bootstrap=backends.kafka.bootstrap,
                redis_url=backends.redis.url,
            )
            stack.callback(gateway.process.stop, 5)
            gateways.append(gateway)
        for gateway in gateways:
            await gateway.ready()
        await _wait_loaded(client, releases)
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(gateway.address))
            for gateway in gateways
        ]
        load = Load([inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels])
        running = asyncio.create_task(load.run())
        seconds, wrong = [], 0
        try:
            for number in range(ROLLBACKS):
                await asyncio.sleep(QUIET_SECONDS)
                good = releases[number % 2]
                request = registry_pb2.RollbackModelRequest(name=MODEL, to_release=good, reason="bench")
                began = time.monotonic()
                answer = await client.registry.RollbackModel(request, timeout=10.0)
                done = time.monotonic()
                if not answer.complete or sum(one.live for one in answer.gateways) != len(gateways):
                    raise RuntimeError(f"a gateway did not acknowledge: {answer.gateways}")
                seconds.append(done - began)
                await asyncio.sleep(QUIET_SECONDS)
                later = [one for one in load.answers if one.sent > done and one.release]
                wrong += sum(one.release != good for one in later)
        finally:
            load.stopped = True
            await running
        if len({one.release for one in load.answers if one.release}) != len(releases):
            raise RuntimeError("the rollbacks changed no answer")
        failed = sum(not one.release for one in load.answers)
        return seconds, failed, wrong + sum(not one.right for one in load.answers), len(load.answers)


async def _release(client: fw.Client, number: int, bias: float) -> str:
    """Register a model file, release it and let it serve; return the release's name."""
    made = RegistryServicer()
    spec = made.release(number, W, bias)
    content = made.artifacts[spec.model_version.name, "model.onnx"]
    project, model = MODEL.split("/models/")
    if number == 1:
        await client.registry.CreateModel(registry_pb2.CreateModelRequest(parent=project, model_id=model))
    spec.model_version.name = ""
    wanted = registry_pb2.CreateModelVersionRequest(parent=MODEL, model_version=spec.model_version)
    version = (await client.registry.CreateModelVersion(wanted)).model_version.name
    checked = await client.upload_artifact(version, "model.onnx", content)
    if checked.artifact_state != model_pb2.ARTIFACT_STATE_READY:
        raise RuntimeError(f"the version is not ready: {checked.check_problems}")
    release = spec.release
    release.name, release.model_version = "", version
    created = registry_pb2.CreateReleaseRequest(parent=MODEL, release=release)
    name = str((await client.registry.CreateRelease(created)).release.name)
    await client.registry.PromoteModelVersion(
        registry_pb2.PromoteModelVersionRequest(
            name=version, to_stage=model_pb2.STAGE_PRODUCTION, override=True, reason="bench"
        )
    )
    return name


async def _wait_loaded(client: fw.Client, releases: list[str]) -> None:
    """Wait until both gateways have loaded both releases: the former champion stays warm."""
    async with asyncio.timeout(60):
        while True:
            found = (await client.registry.ListGateways(registry_pb2.ListGatewaysRequest())).gateways
            ready = [set(one.ready_releases) for gateway in found for one in gateway.observed]
            if len(ready) == 2 and all(set(releases) <= names for names in ready):
                return
            await asyncio.sleep(0.1)


class Load:
    """Predictions at RATE, over the gateways in turn."""

    def __init__(self, stubs: list[Any]) -> None:
        self._stubs = itertools.cycle(stubs)
        self._scores = {
            f"{MODEL}/releases/{number}": [
                expected_score(W, bias, (2.0, float(miles), 0.0)) for miles in range(7)
            ]
            for number, bias in enumerate(BIASES, 1)
        }
        self.answers: list[Answer] = []
        self.stopped = False

    async def run(self) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                if self.stopped:
                    return
                await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
                group.create_task(self._predict(number))

    async def _predict(self, number: int) -> None:
        answer = Answer(time.monotonic())
        try:
            found = await next(self._stubs).Predict(predict_request(number), timeout=DEADLINE)
        except grpc.aio.AioRpcError:
            self.answers.append(answer)
            return
        if found.source == PREDICTION_SOURCE_MODEL and not found.degraded:
            score = self._scores[found.release][number % 7]
            answer = replace(answer, release=found.release, right=abs(found.score - score) < TOLERANCE)
        self.answers.append(answer)
