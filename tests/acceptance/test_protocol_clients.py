"""Clients of the Open Inference Protocol by other projects, each in an environment of its own.

`make acceptance` installs them into .local/clients; a service or a test process cannot import them, because
each defines messages of the same names as tritonclient does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from flywheel_local.triton import Triton
from tests.support.builders.inference import MODEL, expected_score
from tests.support.eventually import eventually
from tests.support.servers.inference import Deployment, Gateway

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
W = (0.5, -0.25, 1.0)
RAW = [expected_score(W, 0.0, row) for row in ((1, 2, 0), (0.5, -1, 2))]
SCORES = [expected_score(W, 0.0, row) for row in ((2, 1, 0), (-1, 4, 1))]


@pytest.fixture
async def gateway(tmp_path: Path, triton: Triton) -> AsyncIterator[Gateway]:
    async with AsyncExitStack() as stack:
        deployment = Deployment(
            stack, triton_url=triton.grpc_url, state_dir=tmp_path / "state", log_drain_seconds=0.1
        )
        await deployment.start()
        served = await deployment.gateway_serving(deployment.registry.release(101, W))
        await eventually(lambda: served.server.health.status() == 1)
        yield served


async def result_of(name: str, gateway: Gateway) -> Any:
    """What the client printed."""
    python = ROOT / ".local" / "clients" / name / "bin" / "python"
    assert python.exists(), f"{name} is not installed: `make acceptance` installs it into .local/clients"
    process = await asyncio.create_subprocess_exec(
        *(python, CLIENTS / f"{name}_client.py", f"127.0.0.1:{gateway.server.port}"),
        *(MODEL, f"{MODEL}/versions/101"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()[-3000:]
    return json.loads(out)


@pytest.mark.timeout(180)
async def test_the_grpc_client_of_kserve_works(gateway: Gateway) -> None:
    result = await result_of("kserve", gateway)
    assert result.pop("raw") == pytest.approx(RAW, abs=1e-6)
    assert result.pop("scores") == pytest.approx(SCORES, abs=1e-6)
    assert result == {
        "live": True,
        "ready": True,
        "model_ready": True,
        "unknown_ready": False,
        "id": "kserve",
        "sources": ["MODEL", "MODEL"],
        "refused": "NOT_FOUND",
    }


@pytest.mark.timeout(180)
async def test_the_grpc_messages_and_codecs_of_mlserver_work(gateway: Gateway) -> None:
    result = await result_of("mlserver", gateway)
    for form in ("contents", "raw"):
        found = result.pop(form)
        assert found["raw"] == pytest.approx(RAW, abs=1e-6)
        assert found["scores"] == pytest.approx(SCORES, abs=1e-6)
        assert found["sources"] == ["MODEL", "MODEL"]
    assert result == {
        "live": True,
        "ready": True,
        "model_ready": True,
        "server": "flywheel",
        "inputs": ["carrier", "miles", "origin"],
        "index": [[MODEL, ""], [MODEL, "101"]],
    }
