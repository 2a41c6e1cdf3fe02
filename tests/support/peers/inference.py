"""Stand-ins for the gateway's peers: a registry and a feature service that return what a test sets."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import onnx
import onnx.numpy_helper

from flywheel_common import columns
from flywheel_common.signature import FLOAT32, FLOAT64
from flywheel_common.signature_messages import signature_message, tensor_message
from flywheel_protos.feature.v1 import definitions_pb2, feature_pb2, feature_pb2_grpc
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_protos.types.v1 import value_pb2 as types
from tests.support.builders.inference import FEATURE_SET, INPUTS, MODEL, ORIGINS, expected_score, onnx_model
from tests.support.builders.kinds import KindModel
from tests.support.builders.onnx_models import golden_rows

NO_SERVER = "127.0.0.1:1"
"""An address on which no server listens."""


class FeatureServicer(feature_pb2_grpc.FeatureServiceServicer):
    """Feature hist__delay by carrier from `delays`; trip__miles and route__origin echo the request.

    `outage`: status code with which every read fails. `hold`: reads wait for this event. Each read takes
    `seconds`; one with a carrier in `refused` fails with INVALID_ARGUMENT. `padding` is added to
    route__origin. `extra` computes more features from the carriers and the request fields. A feature set
    with `broken` in its name fails with INTERNAL, one with `unknown` does not exist, and one with `windy`
    needs the request field `wind`.
    """

    def __init__(self) -> None:
        self.delays: dict[str, float | None] = {"UA": 2.0, "DL": -1.0}
        self.outage: grpc.StatusCode | None = None
        self.hold: asyncio.Event | None = None
        self.seconds = 0.0
        self.refused: set[str] = set()
        self.padding = ""
        self.extra: Callable[[list[str], Any], list[Any]] = lambda carriers, fields: []
        self.batches: list[int] = []
        self.broken_lookups = 0
        self.as_ofs: list[int | None] = []

    async def GetFeatureSet(self, request: Any, context: Any) -> Any:
        if "unknown" in request.name:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown")
        field = types.Field
        extra = [field(name="wind", data_type=types.DATA_TYPE_FLOAT64)] if "windy" in request.name else []
        return feature_pb2.GetFeatureSetResponse(
            feature_set=definitions_pb2.FeatureSet(
                name=FEATURE_SET,
                version=1,
                features=["hist:delay", "trip:miles", "route:origin"],
                schema=[
                    field(name="hist__delay", data_type=types.DATA_TYPE_FLOAT64),
                    field(name="trip__miles", data_type=types.DATA_TYPE_FLOAT64),
                    field(name="route__origin", data_type=types.DATA_TYPE_STRING),
                ],
                join_keys=[field(name="carrier", data_type=types.DATA_TYPE_STRING)],
                request_fields=[
                    field(name="miles", data_type=types.DATA_TYPE_FLOAT64),
                    field(name="origin", data_type=types.DATA_TYPE_STRING),
                    *extra,
                ],
            )
        )

    async def GetOnlineFeatures(self, request: Any, context: Any) -> Any:
        if self.hold is not None:
            await self.hold.wait()
        await asyncio.sleep(self.seconds)
        if self.outage is not None:
            await context.abort(self.outage, "down")
        if "broken" in request.feature_set:
            self.broken_lookups += 1
            await context.abort(grpc.StatusCode.INTERNAL, "broken")
        sent = columns.from_table(request.entities)
        fields = columns.from_table(request.request_fields)
        carriers = list(sent["carrier"][0])
        if not self.refused.isdisjoint(carriers):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")
        self.batches.append(len(carriers))
        self.as_ofs.append(request.as_of.ToMicroseconds() if request.HasField("as_of") else None)
        found = [self.delays.get(c) for c in carriers]
        status = [
            1 if v is not None else (2 if c in self.delays else 3)
            for c, v in zip(carriers, found, strict=True)
        ]
        valid = np.array([v is not None for v in found])
        delay = columns.from_numpy("hist__delay", np.array([v or 0.0 for v in found]), valid)
        miles = columns.from_numpy("trip__miles", *fields["miles"])
        origin = columns.from_texts("route__origin", [o + self.padding for o in fields["origin"][0]])
        extra = self.extra(carriers, fields)
        answer = feature_pb2.GetOnlineFeaturesResponse(
            features=columns.to_table([delay, miles, origin, *extra]),
            statuses=bytes(status) + b"\x01" * ((2 + len(extra)) * len(carriers)),
            feature_set=FEATURE_SET,
        )
        if request.with_applied_offsets:
            # Partition 0, and a next offset that distinguishes one request from another.
            positions = [[0, int(m)] for m in fields["miles"][0]]
            applied = columns.from_lists("hist@1", positions, types.DATA_TYPE_INT64_LIST)
            answer.applied_offsets.CopyFrom(columns.to_table([applied]))
        return answer


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """Streams the desired state, serves `artifacts` by version and file name and `specs` by digest, and
    collects `reports`. `spec_reads`: the digests that were fetched."""

    def __init__(self) -> None:
        self.desired = registry_pb2.WatchServingResponse()
        self.artifacts: dict[tuple[str, str], bytes] = {}
        self.specs: dict[str, bytes] = {}
        self.spec_reads: list[str] = []
        self.reports: list[Any] = []
        self.changed = asyncio.Event()
        self.chunk_bytes = 100

    def want(self, **routing: Any) -> int:
        """Sets the routing of MODEL to these ServingReleases and shares; returns its generation. `variants`:
        name → (ServingRelease, percent, percent of copies)."""
        generation = (self.desired.models[0].generation if self.desired.models else 0) + 1
        for variant in ("champion", "challenger"):
            if routing.get(variant) is not None:
                routing[variant] = self.reference(routing[variant])
        routing["warm"] = [self.reference(release) for release in routing.get("warm", ())]
        routing["variants"] = [
            model_pb2.ServingVariant(
                name=name, release=self.reference(release), percent=percent, shadow_percent=copies
            )
            for name, (release, percent, copies) in routing.get("variants", {}).items()
        ]
        model = model_pb2.ServingModel(model=MODEL, generation=generation, **routing)
        self.desired = registry_pb2.WatchServingResponse(models=[model])
        self.changed.set()
        return generation

    def reference(self, release: Any) -> Any:
        """Serves the specification of a ServingRelease and returns its reference."""
        content = release.SerializeToString(deterministic=True)
        digest = hashlib.sha256(content).hexdigest()
        self.specs[digest] = content
        return model_pb2.ServingReference(release=release.release.name, digest=digest)

    async def WatchServing(self, request: Any, context: Any) -> AsyncIterator[Any]:
        snapshot = True
        while True:
            self.changed.clear()
            yield registry_pb2.WatchServingResponse(models=self.desired.models, snapshot=snapshot)
            snapshot = False
            await self.changed.wait()

    async def GetServingSpec(self, request: Any, context: Any) -> Any:
        self.spec_reads.append(request.digest)
        if request.digest not in self.specs:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown")
        return registry_pb2.GetServingSpecResponse(spec=self.specs[request.digest])

    async def ReportServing(self, request: Any, context: Any) -> Any:
        self.reports.append(request)
        return registry_pb2.ReportServingResponse()

    async def DownloadArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:
        content = self.artifacts.get((request.model_version, request.artifact))
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown")
            return
        for start in range(0, len(content), self.chunk_bytes):
            yield registry_pb2.DownloadArtifactResponse(data=content[start : start + self.chunk_bytes])

    def release(
        self,
        number: int,
        weights: tuple[float, ...],
        bias: float = 0.0,
        *,
        golden_shift: float = 0.0,
        corrupt: bool = False,
        default_score: float | None = 0.25,
        feature_set: str = FEATURE_SET,
        inputs: tuple[str, ...] = INPUTS,
        **fields: Any,
    ) -> Any:
        """Registers a version with its file; returns a release of it."""
        content = onnx_model(weights, bias)
        version = f"{MODEL}/versions/{number}"
        self.artifacts[version, "model.onnx"] = content[:-1] + b"?" if corrupt else content
        rows = np.array([[1, 2, 0], [0.5, -1, 2], [np.nan, 1, -1]], np.float32)
        scores = np.array([expected_score(weights, bias, row) for row in rows.tolist()], np.float32)
        scores += golden_shift
        input_types = {"route__origin": types.DATA_TYPE_STRING}
        release = model_pb2.Release(
            name=f"{MODEL}/releases/{number}",
            model_version=version,
            feature_set=feature_set,
            threshold=0.5,
            **fields,
        )
        if default_score is not None:
            release.fallback.default_score = default_score
        return model_pb2.ServingRelease(
            release=release,
            model_version=model_pb2.ModelVersion(
                name=version,
                feature_set=feature_set,
                signature=model_pb2.Signature(
                    inputs=[
                        model_pb2.SignatureInput(
                            name=name,
                            data_type=input_types.get(name, types.DATA_TYPE_FLOAT64),
                            vocabulary=ORIGINS if name in input_types else (),
                        )
                        for name in inputs
                    ]
                ),
                artifacts=[
                    model_pb2.Artifact(
                        name="model.onnx", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
                    )
                ],
                golden_rows=golden_rows(rows, scores),
            ),
        )


def kind_release(
    registry: RegistryServicer, number: int, model: KindModel, *, golden_shift: float = 0.0, **fields: Any
) -> Any:
    """Registers a version of a model of any kind; returns a release of it."""
    version = f"{MODEL}/versions/{number}"
    registry.artifacts[version, "model.onnx"] = model.file
    signature = model.signature
    types_of = {tensor.name: tensor.data_type for tensor in signature.input_tensors}
    output = model.output + golden_shift
    return model_pb2.ServingRelease(
        release=model_pb2.Release(
            name=f"{MODEL}/releases/{number}", model_version=version, feature_set=FEATURE_SET, **fields
        ),
        model_version=model_pb2.ModelVersion(
            name=version,
            feature_set=FEATURE_SET,
            signature=signature_message(signature),
            artifacts=[
                model_pb2.Artifact(
                    name="model.onnx",
                    size_bytes=len(model.file),
                    sha256=hashlib.sha256(model.file).hexdigest(),
                )
            ],
            golden_rows=model_pb2.GoldenRows(
                row_count=len(output),
                tensors=[tensor_message(n, types_of[n], tensor) for n, tensor in model.tensors.items()],
                output=tensor_message(
                    signature.output.tensor, FLOAT64 if output.dtype == np.float64 else FLOAT32, output
                ),
            ),
        ),
    )


class PeerServer:
    """A gRPC server for one servicer. It keeps its port over `stop` and `start`."""

    def __init__(self, add: Callable[[Any, Any], None], servicer: Any) -> None:
        self._add, self._servicer = add, servicer
        self._server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._add(self._servicer, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


def registry_server(servicer: Any) -> PeerServer:
    return PeerServer(registry_pb2_grpc.add_RegistryServiceServicer_to_server, servicer)


def feature_server(servicer: Any) -> PeerServer:
    return PeerServer(feature_pb2_grpc.add_FeatureServiceServicer_to_server, servicer)


def want_large_model(registry: RegistryServicer, number: int, weights: tuple[float, ...], size: int) -> str:
    """Adds a model whose file has `size` bytes of weights that its graph does not use; returns its name."""
    (model,) = want_models(registry, 1, weights, first=number, also=True)
    version = f"{model}/versions/1"
    file = onnx.load_from_string(registry.artifacts[version, "model.onnx"])
    ballast = np.random.default_rng(number).random(size // 4, np.float32)
    file.graph.initializer.append(onnx.numpy_helper.from_array(ballast, "ballast"))
    content = file.SerializeToString()
    registry.artifacts[version, "model.onnx"] = content
    wanted = registry.desired.models[-1]
    release = model_pb2.ServingRelease.FromString(registry.specs[wanted.champion.digest])
    (artifact,) = release.model_version.artifacts
    artifact.size_bytes, artifact.sha256 = len(content), hashlib.sha256(content).hexdigest()
    wanted.champion.CopyFrom(registry.reference(release))
    return model


def want_models(
    registry: RegistryServicer,
    count: int,
    weights: tuple[float, ...],
    *,
    first: int = 0,
    also: bool = False,
) -> list[str]:
    """Makes the registry want one champion for each of many models; returns their names. `also`: beside the
    models that it wants already."""
    served = []
    for number in range(first, first + count):
        model = f"projects/test/models/m{number}"
        release = registry.release(number, weights)
        file = registry.artifacts.pop((release.model_version.name, "model.onnx"))
        release.release.name = f"{model}/releases/1"
        release.release.model_version = release.model_version.name = f"{model}/versions/1"
        registry.artifacts[release.model_version.name, "model.onnx"] = file
        served.append(model_pb2.ServingModel(model=model, generation=1, champion=registry.reference(release)))
    before = registry.desired.models if also else ()
    registry.desired = registry_pb2.WatchServingResponse(models=[*before, *served])
    registry.changed.set()
    return [model.model for model in served]
