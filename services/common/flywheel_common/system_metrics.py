"""CPU and memory of this process, read from /proc, and memory of its GPUs, from torch."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

SYSTEM = "system/"
"""Metrics of the machine begin with this; their step is the time in seconds since the epoch."""
_PAGE_BYTES = resource.getpagesize()


class SystemMetrics:
    """Use of the machine since the last reading, by metric; in a distributed job the rank is in the key."""

    def __init__(self, rank: int | None = None) -> None:
        """Without `rank`, it is that of the environment's RANK, if it has one."""
        number = os.environ.get("RANK", "") if rank is None else str(rank)
        self._suffix = f"/rank-{number}" if number.isdigit() else ""
        self._cpu, self._time = time.process_time(), time.monotonic()

    def read(self) -> dict[str, float]:
        """`cpu_percent` (100: one core), `memory_bytes` and `machine_memory_percent`, if known; and
        `gpu_memory_bytes`, what torch has reserved on the GPUs of this process, if it uses some."""
        cpu, now = time.process_time(), time.monotonic()
        found = {"cpu_percent": 100.0 * (cpu - self._cpu) / max(now - self._time, 1e-9)}
        self._cpu, self._time = cpu, now
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            found["memory_bytes"] = float(pages * _PAGE_BYTES)
            memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
            total, free = (float(memory[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
            found["machine_memory_percent"] = 100.0 * (1 - free / total)
        except (OSError, KeyError, ValueError, IndexError):
            # Not Linux: the peak is all that is known.
            found.setdefault("memory_bytes", float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
        reserved = _gpu_memory_bytes(sys.modules.get("torch"))
        if reserved is not None:
            found["gpu_memory_bytes"] = reserved
        return {f"{SYSTEM}{name}{self._suffix}": value for name, value in found.items()}


def _gpu_memory_bytes(torch: Any) -> float | None:
    """What a process that has imported torch and uses GPUs has reserved there; its use by others is not known
    to torch. CUDA is not started for it."""
    cuda = getattr(torch, "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return None
    try:
        return float(sum(cuda.memory_reserved(device) for device in range(cuda.device_count())))
    except RuntimeError:
        # The training loop reports a GPU that has failed.
        return None
