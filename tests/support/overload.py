"""A gateway under more calls than it can answer: its capacity, and its answers at multiples of it.

The gateway and the client have a core each, so that the client takes nothing from the gateway. Capacity is
the highest rate of answers in closed loops of the same run.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.support.servers.inference_processes import GatewayProcess

GATEWAY_CORE, CLIENT_CORE = 0, 1
IN_FLIGHT = (32, 64, 128)
DEADLINE = 1.0
OK, REFUSED = 0, 8


@dataclass(frozen=True, slots=True)
class Load:
    """Rates per second; 99th percentiles in milliseconds, from send to answer; memory of the gateway."""

    offered: float
    good: float
    good_p99: float
    refused: int
    refused_p99: float
    codes: dict[int, int]
    memory_bytes: int

    def __str__(self) -> str:
        return (
            f"offered {self.offered:.0f}/s, answered {self.good:.0f}/s (p99 {self.good_p99:.0f} ms), "
            f"{self.refused} refused (p99 {self.refused_p99:.0f} ms), codes {self.codes}, "
            f"{self.memory_bytes / 2**20:.0f} MiB"
        )


def pin(pid: int, core: int) -> None:
    """Keeps all threads of a process, and those that it starts later, on one core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), {core % (os.cpu_count() or 1)})
        except ProcessLookupError:
            continue  # the thread has ended


async def load(gateway: GatewayProcess, kind: str, number: float, seconds: float) -> Load:
    """The load of `tests.support.predict_flood` from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calls.npy"
        numbers = map(str, (number, seconds, DEADLINE))
        module = [sys.executable, "-m", "tests.support.predict_flood", gateway.address, kind, *numbers, file]
        client = await asyncio.create_subprocess_exec(*module)
        pin(client.pid, CLIENT_CORE)
        assert 0 == await client.wait()
        calls = np.load(file)
    span = calls[:, 0].max() - calls[:, 0].min()
    codes, counts = np.unique(calls[:, 2].astype(int), return_counts=True)
    good, refused = (calls[calls[:, 2] == code, 1] for code in (OK, REFUSED))
    return Load(
        offered=float(len(calls) / span),
        good=float(len(good) / span),
        good_p99=_p99_ms(good),
        refused=len(refused),
        refused_p99=_p99_ms(refused),
        codes=dict(zip(codes.tolist(), counts.tolist(), strict=True)),
        memory_bytes=gateway.memory_bytes,
    )


async def capacity(gateway: GatewayProcess, seconds: float) -> float:
    """Answers per second, the most of some closed loops. The gateway is pinned to its core first."""
    pin(gateway.process.pid, GATEWAY_CORE)
    await load(gateway, "closed", 8, 1.0)
    return max([(await load(gateway, "closed", count, seconds)).good for count in IN_FLIGHT])


def _p99_ms(seconds: np.ndarray) -> float:
    return float(np.percentile(seconds, 99)) * 1e3 if len(seconds) else float("nan")
