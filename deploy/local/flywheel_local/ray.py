"""A Ray head node with the Jobs API and token authentication, on loopback."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from flywheel_local import ports as port_numbers
from flywheel_local.backend import Backend, answers_http, fresh_directory, require_tool
from flywheel_local.process import Process

STARTED = "Ray runtime started"
"""What `ray start` prints once its node has registered."""


class Ray(Backend):
    """A Ray cluster of one node."""

    name = "ray"
    port_names = ("ray", "ray_dashboard")
    start_seconds = 180.0

    cpus = 2
    object_store_bytes = 256 * 1024 * 1024
    _session_outside: Path | None = None

    @property
    def address(self) -> str:
        """The address for ``ray.init``."""
        return f"127.0.0.1:{self.ports['ray']}"

    @property
    def jobs_url(self) -> str:
        """The URL of the Jobs HTTP API."""
        return f"http://127.0.0.1:{self.ports['ray_dashboard']}"

    @property
    def token(self) -> str:
        return self.secret("token")

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that a client process needs."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            # On Linux too, this is the only setting that keeps the head node on loopback: without it Ray
            # replaces 127.0.0.1 by the address of the host.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }

    def spawn(self) -> Process:
        # Ray's other ports have fixed defaults, on which two heads on one machine would collide.
        inner = port_numbers.free(
            ["agent", "agent_grpc", "client", "metrics", "node", "objects", "environments"]
        )
        ray = require_tool(Path(sys.prefix) / "bin" / "ray", "Ray")
        command: list[str | Path] = [ray, "start", "--head", "--block", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", f"--port={self.ports['ray']}"]
        command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1"]
        command += [f"--dashboard-port={self.ports['ray_dashboard']}"]
        command += [f"--dashboard-agent-listen-port={inner['agent']}"]
        command += [f"--dashboard-agent-grpc-port={inner['agent_grpc']}"]
        command += [f"--ray-client-server-port={inner['client']}"]
        command += [f"--metrics-export-port={inner['metrics']}"]
        command += [f"--node-manager-port={inner['node']}", f"--object-manager-port={inner['objects']}"]
        command += [f"--runtime-env-agent-port={inner['environments']}"]
        # 0 = any free port, instead of a fixed range that may contain one of our ports.
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--num-cpus={self.cpus}", f"--object-store-memory={self.object_store_bytes}"]
        command += [f"--temp-dir={self._session_directory()}"]
        return Process(
            self.name,
            command,
            log=self.log,
            environment={
                **self.environment,
                # Jobs find "python" on PATH.
                "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
                "RAY_ENABLE_RECORD_ACTOR_TASK_LOGGING": "0",
                "RAY_memory_monitor_refresh_ms": "0",
                "RAY_TRAIN_V2_ENABLED": "1",
                # The only node is never drained, and each job would start a process that waits for it.
                "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
            },
            directory=self.data,
            grace_seconds=6.0,
        )

    def ready(self) -> bool:
        # The Jobs API answers before the node has registered, and Ray exits when the node does not.
        return STARTED in self.log.read_text(errors="replace") and answers_http(
            f"{self.jobs_url}/api/version", header=("Authorization", f"Bearer {self.token}")
        )

    def stop(self) -> None:
        super().stop()
        if self._session_outside is not None:
            shutil.rmtree(self._session_outside, ignore_errors=True)
            self._session_outside = None

    def _session_directory(self) -> Path:
        """A folder short enough for Ray's sockets: their paths are up to 62 characters longer, and limited to
        107."""
        inside = self.data / "s"
        if len(str(inside)) <= 107 - 62:
            return fresh_directory(inside)
        self._session_outside = Path(tempfile.mkdtemp(prefix="fw-ray-"))
        return self._session_outside
