"""CPU of the event loop per call of a kind, and the longest iteration of the loop: so long other calls wait.

Model server and log are in memory. The gateway's process is `python -m bench.inference.loop_holds FEATURE`,
which serves on the port that it prints; for each line of its standard input it prints the CPU time since the
last one, the longest iterations, both of the loop's thread in milliseconds, and its page faults. CPU time
does not count the time in which other processes had the core. The loop is asyncio's, whose iterations can be
measured; the gateway's (uvloop) takes less time per callback.
"""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc

from bench import measure
from flywheel_local import ports
from flywheel_local.layout import LOCAL
from flywheel_protos.inference.v1 import inference_pb2 as pb
from flywheel_protos.inference.v1 import inference_pb2_grpc
from tests.support.builders.inference import MODEL
from tests.support.hostile_load import (
    LARGE_BYTES,
    LARGEST_ACCEPTED,
    PREDICT,
    SHORT_SECONDS,
    large_request,
    ragged_request,
)
from tests.support.prediction_load import predict_request
from tests.support.servers.inference_processes import Peer
from tests.support.servers.memory_gateway import memory_server

NAME = "event loop"
CALLS = {
    "valid": 200,
    "6 ms deadline": 200,
    "ragged": 200,
    "8 MiB": 10,
    "15 MiB": 10,
    "100 rows": 20,
    "1,000 rows": 5,
}
"""Kind → calls."""
FIELDS = {"8 MiB": LARGEST_ACCEPTED, "15 MiB": LARGE_BYTES}
"""Size of the field; the transport refuses the larger one."""
WARM_CALLS = 2


def run(only: str) -> Iterable[measure.Row]:
    wanted = [kind for kind in CALLS if only in f"{NAME}, {kind}"]
    if not wanted:
        return
    LOCAL.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="holds-", dir=LOCAL))
    feature = Peer("feature", folder)
    port = ports.free(["gateway"])["gateway"]
    program = [sys.executable, "-m", "bench.inference.loop_holds", feature.address, str(port)]
    with (folder / "gateway.log").open("wb") as log:
        gateway = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
        )
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_send_message_length", -1)]) as channel:
            _wait_ready(channel)
            for kind in wanted:
                yield from _measured(kind, _call(kind, channel), gateway)
    finally:
        gateway.kill()
        gateway.wait()
        feature.process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_ready(channel: grpc.Channel) -> None:
    stub, until = inference_pb2_grpc.InferenceServiceStub(channel), time.monotonic() + 60
    while True:
        try:
            stub.Predict(predict_request(1), timeout=5)
            return
        except grpc.RpcError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def _call(kind: str, channel: grpc.Channel) -> Callable[[], object]:
    stub, encoded = inference_pb2_grpc.InferenceServiceStub(channel), channel.unary_unary(PREDICT)
    if kind in FIELDS:
        message = large_request(FIELDS[kind]).SerializeToString()
        return lambda: encoded(message, timeout=5)
    if kind.endswith("rows"):
        count = int(kind.removesuffix(" rows").replace(",", ""))
        batch = pb.BatchPredictRequest(
            model=MODEL, requests=[predict_request(number, "") for number in range(count)]
        )
        return lambda: stub.BatchPredict(batch, timeout=30)
    request = ragged_request(3) if kind == "ragged" else predict_request(1)
    timeout = SHORT_SECONDS if kind == "6 ms deadline" else 5.0
    return lambda: stub.Predict(request, timeout=timeout)


def _measured(kind: str, call: Callable[[], object], gateway: Any) -> Iterable[measure.Row]:
    def calls(count: int) -> dict[str, Any]:
        for _ in range(count):
            with suppress(grpc.RpcError):  # most kinds are refused
                call()
        time.sleep(0.2)  # the log is written
        gateway.stdin.write("\n")
        found: dict[str, Any] = json.loads(gateway.stdout.readline())
        return found

    calls(WARM_CALLS)
    found, count = calls(CALLS[kind]), CALLS[kind]
    longest, faults = found["longest"], found["faults"] / count
    measure.console.print(f"  {kind}: longest iterations {longest} ms, {faults:.0f} page faults per call")
    yield measure.row(f"{NAME}, {kind}: CPU per call", found["cpu"] / count, "ms", None)
    yield measure.row(f"{NAME}, {kind}: longest iteration", longest[0], "ms", None)


class _TimedLoop(asyncio.SelectorEventLoop):
    """Measures the CPU time of its iterations."""

    iterations: list[float]

    def _run_once(self) -> None:
        began = time.thread_time()
        super()._run_once()  # type: ignore[misc]
        self.iterations.append((time.thread_time() - began) * 1e3)


async def _serve(feature_address: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _TimedLoop)
    loop.iterations = []
    async with AsyncExitStack() as stack:
        server = await memory_server(stack, port, feature_address)
        serving = asyncio.create_task(server.run_until_signal())
        commands = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        cpu, faults = time.thread_time(), resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        while await commands.readline():
            longest = sorted(loop.iterations, reverse=True)[:5]
            now = time.thread_time(), resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            found = {
                "cpu": (now[0] - cpu) * 1e3,
                "faults": now[1] - faults,
                "longest": [round(one, 2) for one in longest],
            }
            sys.__stdout__.write(json.dumps(found) + "\n")  # type: ignore[union-attr]
            sys.__stdout__.flush()  # type: ignore[union-attr]
            (cpu, faults), loop.iterations = now, []
        server.request_stop()
        await serving


if __name__ == "__main__":
    _TimedLoop.iterations = []
    sys.stdout = sys.stderr  # the answers alone are written to the pipe
    with asyncio.Runner(loop_factory=_TimedLoop) as runner:
        runner.run(_serve(sys.argv[1], int(sys.argv[2])))
