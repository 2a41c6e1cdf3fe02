"""A gateway process with a real Triton and a real feature service: single calls, batches and the v2 protocol.

CPU is that of the gateway process alone. The rows have no bounds: they are compared from commit to commit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as v2

import flywheel as fw
from bench import h2load, measure
from bench.feature import definitions as d
from bench.feature.deployment import FeatureDeployment
from bench.inference.registry_process import model_name
from flywheel_local import ports
from flywheel_local.backends import Backends
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.inference.v1 import inference_pb2_grpc
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.servers.inference_processes import GatewayProcess

FEATURES = (3, 20)
DRIVERS = 1_000
ROUNDS = 5
LONE_CALLS = 1_000
CALLS = 5_000
BATCH = 1_000
RAW_ROWS = 256
PREDICT = "/flywheel.inference.v1.InferenceService/Predict"
INFER = "/inference.GRPCInferenceService/ModelInfer"
VARIES_BY = 16
"""Times that are zero, and numbers of other lengths, change the size of an answer."""


def run(only: str) -> Iterable[measure.Row]:
    wanted = [
        (features, name, part)
        for features in FEATURES
        for name, part in (
            (f"{what}, {features} features{measured}", part) for what, measured, part in _PARTS
        )
        if only in name
    ]
    if not wanted:
        return
    h2load.require()
    with _running() as gateway, grpc.insecure_channel(gateway.address) as channel:
        for features, name, part in wanted:
            yield part(_Rows(gateway, channel, features), name)


class _Rows:
    """The rows of one model."""

    def __init__(self, gateway: GatewayProcess, channel: grpc.Channel, features: int) -> None:
        self._gateway = gateway
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._model = model_name(features)
        self._features = features

    def _request(self, number: int = 0) -> pb.PredictRequest:
        driver = Value(string_value=d.drivers(DRIVERS)[number % DRIVERS])
        return pb.PredictRequest(model=self._model, entity_keys={"driver": driver})

    def _load(self, concurrent: int, calls: int) -> h2load.Load:
        answer = self._stub.Predict(self._request(), timeout=5)
        if answer.degraded:
            raise h2load.WrongAnswers(f"the answer is degraded: {answer.degraded_reason}")
        message, size = self._request().SerializeToString(), answer.ByteSize()
        return h2load.load(
            self._gateway.address,
            PREDICT,
            message,
            size,
            concurrent=concurrent,
            calls=calls,
            varies_by=VARIES_BY,
        )

    def latency(self, name: str, concurrent: int, calls: int, which: str) -> measure.Row:
        found = [getattr(self._load(concurrent, calls), which) for _ in range(ROUNDS)]
        return measure.row(name, statistics.median(found), "ms", None)

    def cpu(self, name: str, concurrent: int, calls: int) -> measure.Row:
        found = []
        for _ in range(ROUNDS):
            before = self._gateway.cpu_seconds
            self._load(concurrent, calls)
            found.append((self._gateway.cpu_seconds - before) / calls * 1e3)
        return measure.row(name, statistics.median(found), "ms/call", None)

    def rate(self, name: str, concurrent: int) -> measure.Row:
        found = [self._load(concurrent, CALLS).per_second for _ in range(ROUNDS)]
        return measure.row(name, statistics.median(found), "calls/s", None)

    def batch(self, name: str) -> measure.Row:
        request = pb.BatchPredictRequest(
            model=self._model, requests=[self._request(number) for number in range(BATCH)]
        )
        found = []
        for _ in range(2 * ROUNDS):
            began = time.perf_counter()
            answer = self._stub.BatchPredict(request, timeout=30)
            found.append(BATCH / (time.perf_counter() - began))
            if any(not one.HasField("response") or one.response.degraded for one in answer.results):
                raise h2load.WrongAnswers("a row failed or is degraded")
        return measure.row(name, statistics.median(found), "rows/s", None)

    def _infer(self, rows: int, concurrent: int, calls: int) -> h2load.Load:
        tensor = np.random.default_rng(0).random((rows, self._features)).astype(np.float32)
        request = v2.ModelInferRequest(
            model_name=f"{self._model}/versions/1", raw_input_contents=[tensor.tobytes()]
        )
        request.inputs.add(name="INPUT", datatype="FP32", shape=tensor.shape)
        return h2load.load(
            self._gateway.address,
            INFER,
            request.SerializeToString(),
            None,
            concurrent=concurrent,
            calls=calls,
        )

    def raw_latency(self, name: str) -> measure.Row:
        found = [self._infer(1, 1, LONE_CALLS).p50 for _ in range(ROUNDS)]
        return measure.row(name, statistics.median(found), "ms", None)

    def raw_rate(self, name: str) -> measure.Row:
        found = [self._infer(RAW_ROWS, 4, LONE_CALLS).per_second * RAW_ROWS for _ in range(ROUNDS)]
        return measure.row(name, statistics.median(found), "rows/s", None)


_PARTS: list[tuple[str, str, Callable[[_Rows, str], measure.Row]]] = [
    ("Predict, 1 concurrent", ", p50", lambda rows, name: rows.latency(name, 1, LONE_CALLS, "p50")),
    ("Predict, 1 concurrent", ", p99", lambda rows, name: rows.latency(name, 1, LONE_CALLS, "p99")),
    ("Predict, 1 concurrent", ", CPU", lambda rows, name: rows.cpu(name, 1, LONE_CALLS)),
    ("Predict, 16 concurrent", ", CPU", lambda rows, name: rows.cpu(name, 16, CALLS)),
    ("Predict, 16 concurrent", "", lambda rows, name: rows.rate(name, 16)),
    ("Predict, 64 concurrent", "", lambda rows, name: rows.rate(name, 64)),
    (f"BatchPredict of {BATCH}", "", lambda rows, name: rows.batch(name)),
    ("v2 ModelInfer, tensors of 1 row, 1 concurrent", ", p50", lambda rows, name: rows.raw_latency(name)),
    (f"v2 ModelInfer, tensors of {RAW_ROWS} rows, 4 concurrent", "", lambda rows, name: rows.raw_rate(name)),
]
"""The name of a row before and after the number of features, and its measurement."""


@contextmanager
def _running() -> Iterator[GatewayProcess]:
    with ExitStack() as stack:
        features = stack.enter_context(FeatureDeployment())
        _fill(features)
        folder = features.folder / "inference"
        triton = stack.enter_context(
            Backends({"triton"}, directory=folder / "data", log=folder / "log")
        ).triton
        port = ports.free(["registry"])["registry"]
        numbers = list(map(str, (port, *FEATURES)))
        features.start("registry", ["-m", "bench.inference.registry_process", *numbers])
        gateway = GatewayProcess(
            "gateway",
            folder,
            registry_address=f"127.0.0.1:{port}",
            feature_address=features.address,
            triton_url=triton.grpc_url,
            kafka_bootstrap=features.backends.kafka.bootstrap,
            redis_url=features.backends.redis.url,
        )
        features.keep(gateway.process)
        gateway.wait_ready(models=len(FEATURES))
        yield gateway


def _fill(deployment: FeatureDeployment) -> None:
    """Materializes the features of all drivers."""
    deployment.write_table(d.WIDE_URI + "part.parquet", d.wide_rows(DRIVERS))
    worker = deployment.start_worker()
    sets = [
        fw.FeatureSet(f"first_{number}", [f"fifty:{name}" for name in d.NAMES[:number]])
        for number in FEATURES
    ]

    async def work(client: fw.Client) -> None:
        await client.apply(fw.compile_definitions([d.fifty, *sets], "default"))
        await client.materialize("fifty")

    deployment.call(work)
    worker.stop()
