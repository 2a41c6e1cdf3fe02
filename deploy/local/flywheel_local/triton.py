"""NVIDIA Triton 2.51 from the wheel ``nvidia-pytriton``, with explicit model control.

Models are sent inside load requests, so that client and server need no shared disk. The wheel contains only
the Python backend; ``model.py`` of a model runs in the environment ``.local/triton/runtime`` (numpy 1.26,
ONNX Runtime).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from flywheel_local import libpython
from flywheel_local.backend import Backend, answers_http, require_tool
from flywheel_local.layout import TRITON_RUNTIME, TRITON_SERVER
from flywheel_local.process import Process

_SERVER = TRITON_SERVER / "pytriton" / "tritonserver"
_STUB = "triton_python_backend_stub"


class Triton(Backend):
    """A Triton server with an empty model repository."""

    name = "triton"
    port_names = ("triton_http", "triton_grpc", "triton_metrics")

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.ports['triton_grpc']}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['triton_http']}"

    def spawn(self) -> Process:
        server = require_tool(_SERVER / "bin" / "tritonserver", "Triton")
        require_tool(TRITON_RUNTIME / "bin" / "python3", "the Python environment of Triton's models")
        _copy_stub()
        repository = self.data / "models"
        repository.mkdir(exist_ok=True)
        libraries = [TRITON_SERVER / "nvidia_pytriton.libs", libpython.fetch()]
        command: list[str | Path] = [
            server,
            "--model-repository",
            repository,
            "--model-control-mode",
            "explicit",
        ]
        command += ["--backend-directory", _SERVER / "backends", "--exit-on-error", "false"]
        command += ["--strict-readiness", "false", "--log-verbose", "0", "--disable-auto-complete-config"]
        for kind in ("http", "grpc"):
            command += [f"--{kind}-address", "127.0.0.1", f"--{kind}-port", str(self.ports[f"triton_{kind}"])]
        command += ["--metrics-address", "127.0.0.1", "--metrics-port", str(self.ports["triton_metrics"])]
        return Process(
            self.name,
            command,
            log=self.log,
            environment={
                "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
                # The stub uses the first python3 on PATH and ignores PYTHONPATH.
                "PATH": f"{TRITON_RUNTIME / 'bin'}:/usr/bin:/bin",
                "OMP_NUM_THREADS": "1",
            },
            directory=self.data,
            grace_seconds=8.0,
        )

    def ready(self) -> bool:
        return answers_http(f"{self.http_url}/v2/health/ready")


def _copy_stub() -> None:
    """Copies the stub for our Python version next to the backend, which expects it there."""
    target = _SERVER / "backends" / "python" / _STUB
    if not target.exists():
        source = require_tool(_SERVER / "python_backend_stubs" / "3.11" / _STUB, "Triton's Python stub")
        partial = Path(f"{target}.partial")
        shutil.copy2(source, partial)
        partial.rename(target)
