"""A gateway's peers that say what a test wants, small models, and short ways through the API."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from flywheel_common import columns
from flywheel_common.grpc.server import Server
from flywheel_inference.config import InferenceSettings
from flywheel_inference.models.feature_block import FeatureColumn
from flywheel_inference.prediction_log.rows import LogRows
from flywheel_inference.releases.release import Contract, FieldSpec, GoldenRows, InputSpec, ReleaseSpec
from flywheel_inference.requests.request import Item
from flywheel_protos.feature.v1 import definitions_pb2, feature_pb2, feature_pb2_grpc
from flywheel_protos.inference.v1 import inference_pb2, inference_pb2_grpc
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, registry_pb2_grpc
from flywheel_protos.types.v1 import value_pb2
from tests.support.eventually import eventually

MODEL = "projects/test/models/late"
SET = "projects/test/featureSets/flights/versions/1"
INPUTS = ("hist__delay", "trip__miles", "route__origin")
ORIGINS = ("JFK", "LGA", "EWR")
T = value_pb2
NOBODY = "127.0.0.1:1"
"""An address at which nothing answers."""


def onnx_model(weights: tuple[float, ...], bias: float) -> bytes:
    """sigmoid(sum(weights * input) + bias), a missing number counting as 0."""
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("IsNaN", ["INPUT"], ["missing"]),
            helper.make_node("Where", ["missing", "zero", "INPUT"], ["x"]),
            helper.make_node("MatMul", ["x", "W"], ["product"]),
            helper.make_node("Add", ["product", "b"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["SCORE"]),
        ],
        "late",
        [helper.make_tensor_value_info("INPUT", TensorProto.FLOAT, ["rows", len(weights)])],
        [helper.make_tensor_value_info("SCORE", TensorProto.FLOAT, ["rows", 1])],
        [
            helper.make_tensor("W", TensorProto.FLOAT, [len(weights), 1], weights),
            helper.make_tensor("b", TensorProto.FLOAT, [1], [bias]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def expected_score(weights: tuple[float, ...], bias: float, inputs: list[float]) -> float:
    x = np.nan_to_num(np.array(inputs, np.float64), nan=0.0)
    return float(1 / (1 + np.exp(-(x @ np.array(weights) + bias))))


def run_onnx(file: bytes, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What `memory.MemoryModels` runs: the model in this process."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (scores,) = session.run(["SCORE"], {"INPUT": rows})
    except Exception as error:
        raise ValueError(str(error)) from None
    return np.ascontiguousarray(scores[:, 0], np.float32)


class Features(feature_pb2_grpc.FeatureServiceServicer):
    """carrier → delay from `delays`; miles and origin echo the request. `outage` makes every read fail."""

    def __init__(self) -> None:
        self.delays: dict[str, float | None] = {"UA": 2.0, "DL": -1.0}
        self.outage: grpc.StatusCode | None = None
        self.hold: asyncio.Event | None = None
        self.batches: list[int] = []
        self.broken_lookups = 0
        self.as_ofs: list[int | None] = []

    async def GetFeatureSet(self, request: Any, context: Any) -> Any:
        if "unknown" in request.name:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown")
        field = value_pb2.Field
        return feature_pb2.GetFeatureSetResponse(
            feature_set=definitions_pb2.FeatureSet(
                name=SET,
                version=1,
                features=["hist:delay", "trip:miles", "route:origin"],
                join_keys=[field(name="carrier", data_type=T.DATA_TYPE_STRING)],
                request_fields=[
                    field(name="miles", data_type=T.DATA_TYPE_FLOAT64),
                    field(name="origin", data_type=T.DATA_TYPE_STRING),
                ],
            )
        )

    async def GetOnlineFeatures(self, request: Any, context: Any) -> Any:
        if self.hold is not None:
            await self.hold.wait()
        if self.outage is not None:
            await context.abort(self.outage, "down")
        if "broken" in request.feature_set:
            self.broken_lookups += 1
            await context.abort(grpc.StatusCode.INTERNAL, "broken")
        sent = columns.from_table(request.entities)
        fields = columns.from_table(request.request_fields)
        carriers = list(sent["carrier"][0])
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
        origin = columns.from_texts("route__origin", list(fields["origin"][0]))
        answer = feature_pb2.GetOnlineFeaturesResponse(
            features=columns.to_table([delay, miles, origin]),
            statuses=bytes(status) + b"\x01" * (2 * len(carriers)),
            feature_set=SET,
        )
        if request.with_applied_offsets:
            # Partition 0, and a next offset that tells one request from another.
            positions = [[0, int(m)] for m in fields["miles"][0]]
            applied = columns.from_lists("hist@1", positions, T.DATA_TYPE_INT64_LIST)
            answer.applied_offsets.CopyFrom(columns.to_table([applied]))
        return answer


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Streams `desired`, hands out `artifacts`, keeps `reports`."""

    def __init__(self) -> None:
        self.desired = registry_pb2.WatchServingResponse()
        self.artifacts: dict[tuple[str, str], bytes] = {}
        self.reports: list[Any] = []
        self.changed = asyncio.Event()

    def want(self, **routing: Any) -> int:
        """Sets the routing of the one model; returns its generation."""
        generation = (self.desired.models[0].generation if self.desired.models else 0) + 1
        model = model_pb2.ServingModel(model=MODEL, generation=generation, **routing)
        self.desired = registry_pb2.WatchServingResponse(models=[model])
        self.changed.set()
        return generation

    async def WatchServing(self, request: Any, context: Any) -> AsyncIterator[Any]:
        while True:
            self.changed.clear()
            yield self.desired
            await self.changed.wait()

    async def ReportServing(self, request: Any, context: Any) -> Any:
        self.reports.append(request)
        return registry_pb2.ReportServingResponse()

    async def DownloadArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:
        content = self.artifacts.get((request.model_version, request.artifact))
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown")
            return
        for start in range(0, len(content), 100):
            yield registry_pb2.DownloadArtifactResponse(data=content[start : start + 100])

    def release(
        self,
        number: int,
        weights: tuple[float, ...],
        bias: float = 0.0,
        *,
        golden_shift: float = 0.0,
        corrupt: bool = False,
        default_score: float | None = 0.25,
        feature_set: str = SET,
        inputs: tuple[str, ...] = INPUTS,
        **fields: Any,
    ) -> Any:
        """Registers a version with its file and returns the release that serves it."""
        content = onnx_model(weights, bias)
        version = f"{MODEL}/versions/{number}"
        self.artifacts[version, "model.onnx"] = content[:-1] + b"?" if corrupt else content
        rows = np.array([[1, 2, 0], [0.5, -1, 2], [np.nan, 1, -1]], np.float32)
        scores = (
            np.array([expected_score(weights, bias, row) for row in rows.tolist()], np.float32) + golden_shift
        )
        types = {"route__origin": T.DATA_TYPE_STRING}
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
                            data_type=types.get(name, T.DATA_TYPE_FLOAT64),
                            vocabulary=ORIGINS if name in types else (),
                        )
                        for name in inputs
                    ]
                ),
                artifacts=[
                    model_pb2.Artifact(
                        name="model.onnx", size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
                    )
                ],
                golden_rows=model_pb2.GoldenRows(row_count=3, inputs=rows.tobytes(), scores=scores.tobytes()),
            ),
        )


class Peer:
    """A servicer on a port that can go away and come back."""

    def __init__(self, add: Callable[[Any, Any], None], servicer: Any) -> None:
        self._add, self._servicer = add, servicer
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self._add(self._servicer, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


class Gateway:
    """A running gateway and a client of it."""

    def __init__(self, server: Server, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.stub = inference_pb2_grpc.InferenceServiceStub(channel)

    async def predict(
        self,
        carrier: str = "UA",
        miles: float = 1.0,
        origin: str = "JFK",
        *,
        timeout: float = 5.0,
        **fields: Any,
    ) -> Any:
        value = value_pb2.Value
        request = inference_pb2.PredictRequest(
            model=fields.pop("model", MODEL),
            entity_keys={"carrier": value(string_value=carrier)},
            request_fields={"miles": value(double_value=miles), "origin": value(string_value=origin)},
            **fields,
        )
        return await self.stub.Predict(request, timeout=timeout)

    async def status(self) -> Any:
        response = await self.stub.GetServingStatus(inference_pb2.GetServingStatusRequest())
        return response.models[0] if response.models else None

    async def serves(self, generation: int, within: float = 30.0) -> Any:
        """Waits until a generation is applied whole."""

        async def applied() -> Any:
            status = await self.status()
            return status if status is not None and status.generation == generation else None

        return await eventually(applied, within=within)


LOG_CONTRACT = Contract(
    "fs", (FieldSpec("tail", value_pb2.DATA_TYPE_STRING),), (FieldSpec("miles", value_pb2.DATA_TYPE_FLOAT64),)
)
LOG_SPEC = ReleaseSpec(
    name="releases/1",
    model="models/m",
    model_version="versions/1",
    triton_model="m",
    feature_set="fs",
    inputs=(
        InputSpec("a__x", value_pb2.DATA_TYPE_FLOAT64),
        InputSpec("a__c", value_pb2.DATA_TYPE_STRING, ("u", "v")),
    ),
    artifacts=(),
    golden=GoldenRows(np.zeros((0, 2), np.float32), np.zeros(0, np.float32)),
)


def log_item(number: int, subject: str = "") -> Item:
    """Prediction `id-{number}` of a subject (`s{number}` where none is named)."""
    return Item(
        call=None,  # type: ignore[arg-type]
        prediction_id=f"id-{number}",
        keys=(f"N{number}",),
        fields=(None if number % 2 else float(number),),
        as_of_micros=None,
        event_micros=number,
        subject=subject or f"s{number}",
        segment="",
        started=0.0,
    )


def _lists(name: str, values: Sequence[list[int]]) -> FeatureColumn:
    filled = np.empty(len(values), object)
    filled[:] = [np.array(v, np.int64) for v in values]
    return FeatureColumn(name, value_pb2.DATA_TYPE_INT64_LIST, filled, np.ones(len(values), np.bool_))


def log_rows(
    numbers: Sequence[int], *, read: bool = True, role: int = 1, subjects: Mapping[int, str] | None = None
) -> LogRows:
    """Answers whose every column follows from their numbers; with `read` False they had no features."""
    n, named = len(numbers), subjects or {}
    applied = (_lists("h@1", [[0, i] * (i % 3) for i in numbers]), _lists("w@2", [[1, i] for i in numbers]))
    features = (
        FeatureColumn(
            "a__x",
            value_pb2.DATA_TYPE_FLOAT64,
            np.array(numbers, np.float64),
            np.array([i % 3 > 0 for i in numbers]),
        ),
        FeatureColumn(
            "a__c",
            value_pb2.DATA_TYPE_STRING,
            np.array([f"c{i}" for i in numbers], object),
            np.ones(n, np.bool_),
        ),
    )
    return LogRows(
        spec=LOG_SPEC, contract=LOG_CONTRACT, rollout="", role=role, feature_set="fs", items=[log_item(i, named.get(i, "")) for i in numbers],
        features=features if read else None, scores=np.array([i / 100 for i in numbers]),
        decisions=np.array([i > 50 for i in numbers]), sources=np.full(n, 1 if read else 3, np.uint8),
        latencies_ms=np.array(numbers, np.float32), reasons=[] if read else ["MODEL_UNAVAILABLE"] * n,
        applied=applied if read else (),
    )  # fmt: skip


def settings_for_tests(**changes: Any) -> InferenceSettings:
    """A gateway on a free port that leaves at once; a peer that `changes` do not name is one that does not answer."""
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "",
        "drain_seconds": 0.0,
        "grace_seconds": 1.0,
        "log_rpcs": False,
        "registry_address": NOBODY,
        "feature_address": NOBODY,
        "triton_url": NOBODY,
        "kafka_bootstrap": NOBODY,
        "state_dir": Path("/nonexistent"),
        "gateway_id": "gateway-test",
        "boot_wait_seconds": 0.5,
        "log_drain_seconds": 2.0,
        # Generous: tests are about behaviour, and the machine may be busy.
        "batch_cap_seconds": 2.0,
        "default_budget_seconds": 4.0,
    }
    return InferenceSettings(**{**values, **changes})


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Gateway]:
    """A gateway while it runs. Leaving is a clean stop."""
    task = asyncio.create_task(server.run_until_signal())
    try:
        await eventually(lambda: server.port or task.done())
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Gateway(server, channel)
    finally:
        server.request_stop()
        await task
