"""Runs model files in a worker process whose memory, CPU time and wall time are bounded."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from flywheel_common.arrays import Array
from flywheel_common.errors import NotFound
from flywheel_common.signature import STRING
from flywheel_common.storage.objects import ObjectStore, content_key
from flywheel_common.tensors import array_of
from flywheel_registry.artifacts.check import MODEL_FILE
from flywheel_registry.artifacts.errors import DigestMismatch
from flywheel_registry.artifacts.graph import GraphReport, GraphTensor
from flywheel_registry.artifacts.verification import CHUNK_BYTES
from flywheel_registry.models.version import Artifact, ModelVersion

WORKER = Path(__file__).with_name("worker.py")
MAX_REPORT_BYTES = 16 * 1024 * 1024
"""Largest file that a worker may write."""


class OnnxGraphs:
    """`artifacts.GraphRunner`: each file is loaded by a worker process, at most `at_once` of them.

    `memory_bytes` bounds the address space of a worker, `seconds` its CPU time and its wall time.
    """

    def __init__(self, objects: ObjectStore, *, memory_bytes: int, seconds: float, at_once: int = 1) -> None:
        self._objects = objects
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._slots = asyncio.Semaphore(at_once)

    async def run(self, version: ModelVersion) -> GraphReport:
        artifact = next(a for a in version.artifacts if a.name == MODEL_FILE)
        async with self._slots:
            with tempfile.TemporaryDirectory(prefix="flywheel-check-") as name:
                folder = Path(name)
                await self._download(artifact, folder / MODEL_FILE)
                await asyncio.to_thread(self._write_request, version, folder)
                ended = await self._work(folder)
                return await asyncio.to_thread(_read_report, folder, ended)

    async def _download(self, artifact: Artifact, file: Path) -> None:
        sha = hashlib.sha256()
        # Without the object, the digest of no bytes differs from the declared one.
        with file.open("wb") as opened, suppress(NotFound):
            async for chunk in self._objects.stream(content_key(artifact.sha256), CHUNK_BYTES):
                sha.update(chunk)
                await asyncio.to_thread(opened.write, chunk)
        if sha.hexdigest() != artifact.sha256:
            raise DigestMismatch(
                f"The stored bytes of {artifact.name} are not the declared ones: upload it again.",
                artifact=artifact.name,
            )

    def _write_request(self, version: ModelVersion, folder: Path) -> None:
        rows = {}
        for number, tensor in enumerate(version.golden_rows.tensors):
            rows[tensor.name] = f"rows{number}.npy"
            array = array_of(tensor)
            # Texts without pickling: fixed-width unicode.
            texts = tensor.data_type == STRING
            np.save(folder / rows[tensor.name], array.astype(str) if texts else array, allow_pickle=False)
        request = {
            "model": MODEL_FILE,
            "output": version.signature.output.tensor,
            "rows": rows,
            "memory_bytes": self._memory_bytes,
            "cpu_seconds": max(1, round(self._seconds)),
            "file_bytes": MAX_REPORT_BYTES,
        }
        (folder / "request.json").write_text(json.dumps(request))

    async def _work(self, folder: Path) -> str:
        """Run the worker; return why it ended without a report, or an empty text."""
        # -I: no path of the registry's process reaches the worker, which has to import nothing of it.
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(WORKER),
            str(folder),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=folder,
            env=_environment(),
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._seconds):
                code = await worker.wait()
        except TimeoutError:
            return f"it took longer than {self._seconds:g} s."
        finally:
            # The worker leads its process group, so this ends whatever it has started.
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            await worker.wait()
        if code == -signal.SIGXCPU or code == -signal.SIGKILL:
            return f"it used more than {self._seconds:g} s of CPU time."
        if code < 0:
            return f"it ended the process with signal {signal.Signals(-code).name}."
        return "" if code == 0 else f"the process ended with code {code}; it may need too much memory."


def _environment() -> dict[str, str]:
    """The worker's environment: one thread per library, and none of the registry's secrets."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _read_report(folder: Path, ended: str) -> GraphReport:
    file, answer = folder / "report.json", folder / "output.npy"
    if ended:
        return GraphReport(problem=ended)
    try:
        values: dict[str, Any] = json.loads(file.read_bytes())
        return GraphReport(
            problem=values.get("problem", ""),
            inputs=tuple(map(_tensor, values.get("inputs", ()))),
            outputs=tuple(map(_tensor, values.get("outputs", ()))),
            run_problem=values.get("run_problem", ""),
            output=_output(answer) if answer.exists() else None,
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return GraphReport(problem=f"the process wrote no readable report ({type(error).__name__}).")


def _tensor(values: list[Any]) -> GraphTensor:
    name, data_type, shape = values
    return GraphTensor(str(name), str(data_type), None if shape is None else tuple(shape))


def _output(file: Path) -> Array:
    found: Array = np.load(file, allow_pickle=False)
    if found.dtype.kind not in "fiub":
        raise ValueError("the output is no numbers")
    return found
