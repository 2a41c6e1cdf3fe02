"""Stand-ins for the registry and the feature service, as the monitor calls them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from flywheel_protos.feature.v1 import feature_pb2, feature_pb2_grpc, training_set_pb2
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_protos.types.v1 import value_pb2


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Returns the versions that it was given; `down` fails every call."""

    def __init__(self) -> None:
        self.versions: dict[str, model_pb2.ModelVersion] = {}
        self.down = False
        self.calls = 0

    def add(
        self, name: str, training_set: str, inputs: list[str], metrics: dict[str, float] | None = None
    ) -> None:
        self.versions[name] = model_pb2.ModelVersion(
            name=name,
            training_dataset=training_set,
            metrics=metrics or {},
            signature=model_pb2.Signature(inputs=[model_pb2.SignatureInput(name=n) for n in inputs]),
        )

    async def GetModel(self, request: Any, context: Any) -> registry_pb2.GetModelResponse:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        if not any(name.startswith(f"{request.name}/versions/") for name in self.versions):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        return registry_pb2.GetModelResponse(model=model_pb2.Model(name=request.name))

    async def GetModelVersion(self, request: Any, context: Any) -> registry_pb2.GetModelVersionResponse:
        self.calls += 1
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        if request.name not in self.versions:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
        return registry_pb2.GetModelVersionResponse(model_version=self.versions[request.name])


class Feature(feature_pb2_grpc.FeatureServiceServicer):
    """Returns the training sets that it was given."""

    def __init__(self) -> None:
        self.sets: dict[str, training_set_pb2.TrainingSet] = {}

    async def GetTrainingSet(self, request: Any, context: Any) -> feature_pb2.GetTrainingSetResponse:
        if request.name not in self.sets:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such training set")
        return feature_pb2.GetTrainingSetResponse(training_set=self.sets[request.name])


@dataclass
class Peers:
    """Both services behind one server."""

    registry: Registry
    feature: Feature
    server: grpc.aio.Server
    address: str


@asynccontextmanager
async def peers() -> AsyncIterator[Peers]:
    server = grpc.aio.server()
    found = Peers(Registry(), Feature(), server, "")
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(found.registry, server)
    feature_pb2_grpc.add_FeatureServiceServicer_to_server(found.feature, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    found.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield found
    finally:
        await server.stop(None)


def profile(delays: np.ndarray, carriers: list[str]) -> list[training_set_pb2.ColumnProfile]:
    """Column profiles as a training set has them, computed independently of the monitor."""
    edges = np.unique(np.quantile(delays, np.linspace(0, 1, 129)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, delays, side="left"), minlength=len(edges) + 1)
    names, totals = np.unique(carriers, return_counts=True)
    return [
        training_set_pb2.ColumnProfile(
            name="flights__delay",
            data_type=value_pb2.DATA_TYPE_FLOAT64,
            count=len(delays),
            mean=delays.mean(),
            stddev=delays.std(),
            min=delays.min(),
            max=delays.max(),
            edges=edges,
            bin_counts=counts,
        ),
        training_set_pb2.ColumnProfile(
            name="flights__carrier",
            data_type=value_pb2.DATA_TYPE_STRING,
            count=len(carriers),
            categories=names.tolist(),
            category_counts=totals.tolist(),
        ),
    ]
