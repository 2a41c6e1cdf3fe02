"""Many more calls than a gateway can answer: it stays alive, its memory is bounded, and it recovers.

h2load keeps 16,000 calls open, which is several times the capacity of the gateway on any machine.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import grpc
import pytest

from flywheel_inference.config import InferenceSettings
from tests.robustness.inference.conftest import Platform
from tests.support.eventually import eventually
from tests.support.prediction_load import PredictionLoad, outcomes, predict_request

CONNECTIONS, OPEN_CALLS = 8, 2_000
SECONDS = 6
FLOODS = 3
METHOD = "/flywheel.inference.v1.InferenceService/Predict"
BYTES_PER_CALL = 64 * 1024
BASE_BYTES = 64 * 1024 * 1024

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("h2load") is None, reason="install nghttp2-client"),
]


async def flood(address: str, folder: Path) -> asyncio.subprocess.Process:
    message = predict_request(1).SerializeToString()
    body = folder / "body"
    body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    options = ["-c", CONNECTIONS, "-m", OPEN_CALLS, "-t", 1, "-D", SECONDS, "-d", body]
    headers = ["content-type: application/grpc", "te: trailers", "grpc-timeout: 1S"]
    header_options = [option for header in headers for option in ("-H", header)]
    command = ["h2load", *map(str, options), *header_options, f"http://{address}{METHOD}"]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)


async def test_an_overloaded_gateway_keeps_its_memory_and_recovers(
    platform: Platform, tmp_path: Path
) -> None:
    gateway = await platform.gateway()
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        load = PredictionLoad([channel], rate=50.0)
        assert outcomes(await load.run_for(2.0)).keys() == {"model"}
        before = gateway.memory_bytes
        peaks = []
        for _ in range(FLOODS):
            flooding = await flood(gateway.address, tmp_path)
            peak = 0
            while flooding.returncode is None:
                await asyncio.sleep(0.2)
                peak = max(peak, gateway.memory_bytes)
            peaks.append(peak)
            assert gateway.process.running

            async def recovered() -> bool:
                return outcomes(await load.run_for(0.5)).keys() == {"model"}

            await eventually(recovered, within=10)
    limit = InferenceSettings.model_fields["max_calls_per_connection"].default
    allowed = BASE_BYTES + CONNECTIONS * limit * BYTES_PER_CALL
    assert max(peaks) - before < allowed, (before, peaks)
    # The last flood needs no more than those before it: nothing is kept.
    assert peaks[-1] - max(peaks[:-1]) < BASE_BYTES, peaks
