"""Contract tests of large model files, which a process of its own sends to Triton."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from flywheel_common.errors import DataLoss, DeadlineExceeded, FailedPrecondition, Unavailable
from flywheel_common.signature import FLOAT64, InputSpec, OutputSpec, Signature
from flywheel_inference.models.model_file import ModelFile
from flywheel_inference.models.triton_config import load_request
from flywheel_inference.store.triton.load_process import WORKER
from flywheel_inference.store.triton.model_server import LOAD, TritonModelServer
from tests.support.builders.inference import expected_score, onnx_model
from tests.support.eventually import eventually
from tests.support.peers.inference import NO_SERVER

MIB = 1024 * 1024
W = (0.5, -0.25, 1.0)
ROWS = np.array([[1, 2, 0], [0.5, -1, 2]], np.float32)
SIGNATURE = Signature(tuple(InputSpec(f"a__x{i}", FLOAT64) for i in range(3)))


def large_model(folder: Path, size: int) -> ModelFile:
    """A model with so many bytes of weights that its graph does not use."""
    model = onnx.load_from_string(onnx_model(W, 0.0))
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.random.default_rng(0).random(size // 4, np.float32), "ballast")
    )
    return stored(folder, model.SerializeToString())


def stored(folder: Path, content: bytes) -> ModelFile:
    model = ModelFile(folder / "model.onnx", hashlib.sha256(content).hexdigest())
    model.path.write_bytes(content)
    return model


async def load(models: TritonModelServer, model: ModelFile, timeout: float = 60.0) -> None:
    output = np.zeros((1, 1), np.float32)
    config, files = load_request("large", SIGNATURE, output, model.sha256, backend="python")
    await models.load("large", config, files, model, timeout)


def workers(parent: int | str = "self") -> list[int]:
    """The child processes that send a model file."""
    children = [file.read_text().split() for file in Path(f"/proc/{parent}/task").glob("*/children")]
    return [
        int(pid)
        for pid in itertools.chain(*children)
        if str(WORKER) in Path(f"/proc/{pid}/cmdline").read_text()
    ]


async def test_a_large_file_is_loaded_and_never_held_by_this_process(triton: Any, tmp_path: Path) -> None:
    model = await asyncio.to_thread(large_model, tmp_path, 64 * MIB)
    models = TritonModelServer(triton.grpc_url)
    await models.check_live(10.0)
    before = resident_from_now()
    await load(models, model)
    assert resident("VmHWM") - before < 16 * MIB
    assert model.sha256 == await models.loaded_digest("large", 10.0)
    found = await models.infer("large", {"INPUT": ROWS}, OutputSpec(), 10.0)
    assert [expected_score(W, 0.0, row) for row in ROWS.tolist()] == pytest.approx(
        found[:, 0].tolist(), abs=1e-6
    )
    await models.unload("large", 10.0)
    await models.close()


def resident_from_now() -> int:
    """Resets the peak of the resident memory; returns what is resident."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


async def test_a_large_file_that_is_no_model_is_refused(triton: Any, tmp_path: Path) -> None:
    models = TritonModelServer(triton.grpc_url)
    with pytest.raises(FailedPrecondition) as refused:
        await load(models, stored(tmp_path, b"no model" * MIB))
    assert "MODEL_REFUSED" == refused.value.reason
    await models.close()


@pytest.mark.parametrize("size", [8, 8 * MIB])
async def test_a_file_that_changed_since_it_was_verified_is_not_sent(tmp_path: Path, size: int) -> None:
    model = stored(tmp_path, b"x" * size)
    model.path.write_bytes(b"y" * size)
    models = TritonModelServer(NO_SERVER)
    with pytest.raises(DataLoss) as damaged:
        await load(models, model)
    assert "DIGEST_MISMATCH" == damaged.value.reason
    await models.close()


async def test_a_large_file_for_a_server_that_is_down_is_unavailable(tmp_path: Path) -> None:
    models = TritonModelServer(NO_SERVER)
    with pytest.raises(Unavailable) as down:
        await load(models, stored(tmp_path, b"x" * 8 * MIB))
    assert "MODEL_SERVER_DOWN" == down.value.reason
    await models.close()


class Hanging:
    """A model server that does not answer; `called`: a request has arrived."""

    def __init__(self) -> None:
        self.called = asyncio.Event()

    async def load(self, request: bytes, context: Any) -> bytes:
        self.called.set()
        await asyncio.Event().wait()
        return b""


@pytest.fixture
async def hanging() -> AsyncIterator[tuple[Hanging, TritonModelServer]]:
    server, servicer = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)]), Hanging()
    _, service, method = LOAD.split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(servicer.load)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    models = TritonModelServer(f"127.0.0.1:{port}")
    yield servicer, models
    await models.close()
    await server.stop(None)


async def test_the_process_ends_at_the_deadline(
    hanging: tuple[Hanging, TritonModelServer], tmp_path: Path
) -> None:
    _, models = hanging
    with pytest.raises(DeadlineExceeded) as late:
        await load(models, stored(tmp_path, b"x" * 2 * MIB), timeout=0.2)
    assert "MODEL_TIMEOUT" == late.value.reason
    assert [] == workers()


async def test_the_process_ends_when_the_load_is_cancelled(
    hanging: tuple[Hanging, TritonModelServer], tmp_path: Path
) -> None:
    servicer, models = hanging
    task = asyncio.create_task(load(models, stored(tmp_path, b"x" * 2 * MIB)))
    await asyncio.wait_for(servicer.called.wait(), 20)
    assert 1 == len(workers())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [] == workers()


async def test_the_death_of_the_process_is_a_retryable_error(
    hanging: tuple[Hanging, TritonModelServer], tmp_path: Path
) -> None:
    servicer, models = hanging
    task = asyncio.create_task(load(models, stored(tmp_path, b"x" * 2 * MIB)))
    await asyncio.wait_for(servicer.called.wait(), 20)
    (pid,) = workers()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(Unavailable) as died:
        await task
    assert ("LOAD_PROCESS_FAILED", True) == (died.value.reason, died.value.retryable)


async def test_a_process_that_hangs_is_killed_after_the_deadline(
    hanging: tuple[Hanging, TritonModelServer], tmp_path: Path
) -> None:
    servicer, models = hanging
    task = asyncio.create_task(load(models, stored(tmp_path, b"x" * 2 * MIB), timeout=3.0))
    await asyncio.wait_for(servicer.called.wait(), 20)
    (pid,) = workers()
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded):
        await task
    assert [] == workers()


GATEWAY = """
import asyncio, sys
from pathlib import Path
from flywheel_inference.models.model_file import ModelFile
from flywheel_inference.store.triton.load_process import send_in_process

address, method, file, sha256 = sys.argv[1:]
asyncio.run(send_in_process(address, method, b"", ModelFile(Path(file), sha256), 60.0))
"""


async def test_the_process_dies_with_its_gateway(
    hanging: tuple[Hanging, TritonModelServer], tmp_path: Path
) -> None:
    servicer, models = hanging
    model = stored(tmp_path, b"x" * 2 * MIB)
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-c", GATEWAY, models._address, LOAD, str(model.path), model.sha256
    )
    await asyncio.wait_for(servicer.called.wait(), 20)
    (pid,) = workers(gateway.pid)
    gateway.kill()
    await gateway.wait()
    await eventually(lambda: not Path(f"/proc/{pid}").exists(), within=5)
