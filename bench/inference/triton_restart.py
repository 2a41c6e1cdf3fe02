"""How soon a gateway has loaded its models again after a restart of Triton with 60 models."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from bench import measure
from bench.inference.single_gateway import single_gateway
from flywheel_local.layout import LOCAL
from tests.support.peers.inference import RegistryServicer, want_models
from tests.support.servers.inference_processes import W
from tests.support.triton_restart import Restart, restart_triton

MODELS = 60
BUSY = (7, 21, 33, 58)
NAMES = (
    f"restart of Triton with {MODELS} models: those with traffic are loaded",
    f"restart of Triton with {MODELS} models: all are loaded",
)


def run(only: str) -> Iterable[measure.Row]:
    if not any(only in name for name in NAMES):
        return
    folder = Path(tempfile.mkdtemp(prefix="restart-", dir=LOCAL))
    try:
        found = asyncio.run(_restart(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    yield measure.row(NAMES[0], found.busy_seconds, "s", measure.at_most(3.0, of_value=True))
    yield measure.row(NAMES[1], found.all_seconds, "s", measure.at_most(20.0, of_value=True))


async def _restart(folder: Path) -> Restart:
    registry = RegistryServicer()
    names = want_models(registry, MODELS, W)
    async with single_gateway(folder, registry) as (backends, address):
        busy = [names[number] for number in BUSY]
        return await restart_triton(address, backends.triton, names, busy)
