"""Measures the CPU time of the gRPC pipeline per unary call without a network: the best of several rounds."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Any

import grpc
import uvloop
from prometheus_client import CollectorRegistry

from flywheel_common.grpc.admission import Admission
from flywheel_common.grpc.auth import OpenAuthenticator
from flywheel_common.grpc.pipeline import Pipeline
from flywheel_common.telemetry.logs import RpcLog
from flywheel_common.telemetry.metrics import RedMetrics
from flywheel_common.telemetry.traces import Tracing
from flywheel_protos.types.v1.value_pb2 import Value

CALLS, ROUNDS = 20_000, 7


class Context:
    """The part of a servicer context that the pipeline uses."""

    metadata = (("user-agent", "grpc-python/1.81.1"), ("x-flywheel-actor", "bench"))

    def invocation_metadata(self) -> Any:
        return self.metadata

    def time_remaining(self) -> float:
        return 5.0


class NoMetrics:
    def observe(self, *_: object) -> None: ...


async def behavior(request: Value, _: Any) -> Value:
    return request


async def best(call: Any) -> float:
    raw, context, found = Value(string_value="x" * 100).SerializeToString(), Context(), []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(CALLS):
            await call(raw, context)
        found.append((time.process_time() - started) / CALLS * 1e6)
        await asyncio.sleep(0.06)
    return min(found)


def wrapped(**changes: Any) -> Any:
    parts: dict[str, Any] = {
        "authenticator": OpenAuthenticator(),
        "permissions": {},
        "admission": Admission(100, 100),
        "metrics": RedMetrics(CollectorRegistry()),
        "tracing": Tracing(),
        "rpc_log": RpcLog("bench", io.StringIO()),
        **changes,
    }
    handler = grpc.unary_unary_rpc_method_handler(behavior, Value.FromString, Value.SerializeToString)
    return Pipeline(**parts).wrap("/flywheel.bench.v1.Bench/Echo", handler).unary_unary


async def main() -> None:
    async def parse_and_run(raw: bytes, context: Any) -> Value:
        return await behavior(Value.FromString(raw), context)

    bare = await best(parse_and_run)
    print(f"parse and run alone        {bare:6.2f} µs")
    for name, changes in {
        "whole pipeline": {},
        "without log line": {"rpc_log": None},
        "without log and metrics": {"rpc_log": None, "metrics": NoMetrics()},
    }.items():
        micros = await best(wrapped(**changes))
        print(f"{name:26} {micros:6.2f} µs   (+{micros - bare:.2f})")


uvloop.run(main())
