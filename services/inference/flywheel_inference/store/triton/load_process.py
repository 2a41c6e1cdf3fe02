"""Sends a large model file to Triton in a process of its own: the gateway never holds it in memory."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from pathlib import Path

import grpc

from flywheel_inference.models.errors import LoadProcessFailed
from flywheel_inference.models.model_file import ModelFile

WORKER = Path(__file__).with_name("worker.py")
START_SECONDS = 5.0
"""What the process may take beside its call: its interpreter starts, and it reads the file."""
ERROR_BYTES = 2_000


async def send_in_process(
    address: str, method: str, head: bytes, model: ModelFile, timeout: float
) -> tuple[grpc.StatusCode, str]:
    """Sends `head` and the file's content as one request; returns the status and details of the call.

    DATA_LOSS: the file does not have its digest. The process ends before this function. Raises
    LoadProcessFailed.
    """
    # -I: no path of the gateway's process reaches the worker, which has to import nothing of it. It stays in
    # the gateway's session, because the kernel weighs the lower priority of a process inside its session.
    arguments = [address, method, str(model.path), model.sha256, f"{timeout:.3f}"]
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(WORKER),
        *arguments,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=_environment(),
    )
    try:
        async with asyncio.timeout(timeout + START_SECONDS):
            output, errors = await worker.communicate(head)
    except TimeoutError:
        return grpc.StatusCode.DEADLINE_EXCEEDED, "the process that loads the model did not end"
    finally:
        if worker.returncode is None:
            with suppress(ProcessLookupError):
                worker.kill()
            await worker.wait()
    if worker.returncode != 0:
        reason = errors[-ERROR_BYTES:].decode(errors="replace").strip()
        raise LoadProcessFailed(
            f"The process that loads a model ended with status {worker.returncode}. {reason}".strip()
        )
    code, details = json.loads(output)
    return grpc.StatusCode[code], details


def _environment() -> dict[str, str]:
    """The worker's environment, without the gateway's secrets."""
    return {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
