# ruff: noqa: PTH123 - a script that prints
"""Measures the CPU time of a gRPC server per unary call: bare grpc.aio, and with parts of the pipeline.

    python bench/common/server_overhead.py [calls]

Only the CPU time of the server process counts, so that a busy machine or a slow client has no influence. Each
variant runs in its own process, in three interleaved rounds. Prints the median, and its ratio to bare
grpc.aio.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from typing import Any

import grpc
import uvloop

from flywheel_common.config import ServiceSettings
from flywheel_common.grpc.server import Server
from flywheel_common.telemetry.traces import configure_telemetry
from flywheel_protos.types.v1.value_pb2 import Value
from tests.support.echo import SERVICE, Echo, add_echo

VARIANTS = {
    "bare grpc.aio": {},
    "pipeline, no log": {"log_rpcs": False},
    "pipeline": {},
    "pipeline, 1 % traced": {"trace_ratio": 0.01},
    "pipeline, all traced": {"trace_ratio": 1.0},
    "five interceptors doing nothing": {},
}
METHOD = f"/{SERVICE}/Echo"
IN_FLIGHT = 32


class PassThrough(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """An interceptor that wraps handlers and does nothing else."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)

        async def wrapped(request: Any, context: Any) -> Any:
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            wrapped, handler.request_deserializer, handler.response_serializer
        )


async def serve(variant: str, ready: int) -> None:
    if variant in ("bare grpc.aio", "five interceptors doing nothing"):
        count = 5 if variant.startswith("five") else 0
        server: Any = grpc.aio.server(interceptors=[PassThrough() for _ in range(count)])
        add_echo(Echo(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
    else:
        settings = ServiceSettings(listen="127.0.0.1:0", metrics_listen="", **VARIANTS[variant])
        if "traced" in variant:
            from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

            class Null(SpanExporter):
                def export(self, spans: Any) -> SpanExportResult:
                    return SpanExportResult.SUCCESS

            configure_telemetry("bench", ratio=settings.trace_ratio, exporter=Null())
        ours = Server(settings, servicers=[(add_echo, Echo())], full_service_names=[SERVICE])
        await ours.start()
        port = ours.port
    os.write(ready, f"{port}\n".encode())
    await asyncio.Event().wait()


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(port: int, calls: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo = channel.unary_unary(METHOD, Value.SerializeToString, Value.FromString)
        request, left = Value(string_value="x" * 100), calls

        async def worker() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await echo(request, timeout=5)

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))


def measure(variant: str, calls: int) -> tuple[float, float]:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        uvloop.run(serve(variant, write))
        os._exit(0)
    port = int(os.read(read, 20))
    try:
        uvloop.run(load(port, calls // 10))
        before, started = cpu_seconds(pid), time.monotonic()
        uvloop.run(load(port, calls))
        return (cpu_seconds(pid) - before) / calls * 1e6, calls / (time.monotonic() - started)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def main() -> None:
    if len(sys.argv) > 2:  # one measurement, in a fresh interpreter, as gRPC does not work after a fork
        print(*measure(sys.argv[2], int(sys.argv[1])))
        return
    import subprocess

    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(3):
        for name in VARIANTS:
            answer = subprocess.run(
                [sys.executable, __file__, str(calls), name], check=True, capture_output=True, text=True
            )
            found[name].append(float(answer.stdout.split()[0]))
    bare = statistics.median(found["bare grpc.aio"])
    for name, values in found.items():
        median = statistics.median(values)
        runs = ", ".join(f"{v:.0f}" for v in values)
        print(f"{name:32} {median:7.1f} µs CPU per call   {median / bare:5.2f} × bare   (runs: {runs})")


if __name__ == "__main__":
    main()
