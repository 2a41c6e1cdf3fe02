"""A Redis Cluster behind the interface of one Redis.

Each command goes to the node that owns its key's slot: one write per node, all nodes at the same time.
Commands for a slot that moved are sent again to its new owner. Every command has one key (`mget` is split
into GETs), so that nothing depends on keys sharing a slot.
"""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from collections.abc import Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import hiredis

from flywheel_common.errors import Unavailable
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.online.errors import store_down
from flywheel_feature.store.redis.connection import Argument, RedisPipe, RedisReplyError, checked

log = get_logger(__name__)

SLOTS = 16_384
ROUNDS = 8
"""How many redirections of a command are followed before the store counts as down."""


class ClusterPipe:
    """Connections to all masters of a cluster.

    The URL is `redis+cluster://[user:password@]host:port[,host:port…]` (`rediss+cluster` for TLS). It needs
    one reachable node, which reports the others.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 5.0) -> None:
        parts = urlsplit(url)
        self._scheme = parts.scheme.removesuffix("+cluster")
        credentials, at, hosts = parts.netloc.rpartition("@")
        self._credentials = credentials + at
        self._timeout = timeout_seconds
        self._seeds = [h if ":" in h else f"{h}:6379" for h in hosts.split(",")]
        self._nodes: dict[str, RedisPipe] = {}
        self._slots: list[str] = []
        """host:port of the owner of each slot; empty before the topology was read."""
        self._topology_lock = asyncio.Lock()

    async def call(self, *arguments: Argument) -> Any:
        """Send one command, PING and SCRIPT to every master. Raises RedisReplyError when Redis refuses it."""
        if arguments[0] in ("PING", "SCRIPT"):
            await self._topology()
            answers = await asyncio.gather(
                *(self._node(n).call(*arguments) for n in sorted(set(self._slots)))
            )
            return answers[0]
        (answer,) = await self.calls([arguments])
        return checked(answer)

    async def mget(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The values of at least one key, in the order of the keys; None for a missing key.

        The values are not a snapshot: each may be from another moment.
        """
        return [checked(a) for a in await self.calls([("GET", key) for key in keys])]

    async def calls(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """Send many commands; the answer of a refused command is an exception of hiredis."""
        await self._topology()
        answers: list[Any] = [None] * len(commands)
        where = [self._slots[_slot(c)] for c in commands]
        due = list(range(len(commands)))
        for turn in range(ROUNDS):
            groups: dict[str, list[int]] = {}
            for i in due:
                groups.setdefault(where[i].removeprefix("?"), []).append(i)
            await asyncio.gather(*(self._send(n, g, commands, where, answers) for n, g in groups.items()))
            due, moved, waiting = [], False, False
            for i in sorted(i for g in groups.values() for i in g):
                kind, target = _redirection(answers[i])
                if kind == "MOVED":
                    where[i], moved = self._address(target, where[i]), True
                elif kind == "ASK":
                    where[i] = "?" + self._address(target, where[i])
                elif kind:
                    where[i], waiting = where[i].removeprefix("?"), True
                else:
                    continue
                due.append(i)
            if not due:
                return answers
            if moved:
                await self._topology(again=True)
            if waiting:
                await asyncio.sleep(0.05 * (turn + 1))
        raise store_down()

    async def identity(self) -> str:
        """The run ids of all masters: a master that restarted or was promoted may lack the last writes."""
        await self._topology(again=True)
        masters = sorted(set(self._slots))
        infos = await asyncio.gather(*(self._node(m).call("INFO", "server") for m in masters))
        ids = [line for info in infos for line in info.decode().splitlines() if line.startswith("run_id:")]
        return " ".join(sorted(ids))

    async def close(self) -> None:
        for node in self._nodes.values():
            await node.close()

    async def _send(
        self,
        node: str,
        group: Sequence[int],
        commands: Sequence[tuple[Argument, ...]],
        where: Sequence[str],
        answers: list[Any],
    ) -> None:
        sent: list[tuple[Argument, ...]] = []
        places: list[int] = []
        for i in group:
            if where[i].startswith("?"):
                sent.append(("ASKING",))
                places.append(-1)
            sent.append(commands[i])
            places.append(i)
        try:
            found = await self._node(node).calls(sent)
        except Unavailable:
            # A replica may have been promoted: the next call reads the topology again.
            self._slots = []
            raise
        for place, answer in zip(places, found, strict=True):
            if place >= 0:
                answers[place] = answer

    def _node(self, address: str) -> RedisPipe:
        if address not in self._nodes:
            url = f"{self._scheme}://{self._credentials}{address}/0"
            self._nodes[address] = RedisPipe(url, timeout_seconds=self._timeout)
        return self._nodes[address]

    async def _topology(self, *, again: bool = False) -> None:
        if self._slots and not again:
            return
        async with self._topology_lock:
            if self._slots and not again:
                return
            for address in dict.fromkeys([*self._slots, *self._nodes, *self._seeds]):
                try:
                    ranges = await self._node(address).call("CLUSTER", "SLOTS")
                except (Unavailable, RedisReplyError) as error:
                    log.warning("cannot read the slots of the cluster", node=address, reason=error.reason)
                    continue
                slots = [""] * SLOTS
                for first, last, master, *_ in ranges:
                    owner = self._address(b"%b:%d" % (master[0] or b"", master[1]), address)
                    slots[first : last + 1] = [owner] * (last - first + 1)
                if all(slots):
                    self._slots = slots
                    return
            raise store_down()

    def _address(self, target: bytes, source: str) -> str:
        """host:port of a node; a node without a host in the answer has the host of the node that answered."""
        host, _, port = target.decode().rpartition(":")
        return f"{host or source.removeprefix('?').rpartition(':')[0]}:{port}"


Pipe: TypeAlias = RedisPipe | ClusterPipe
"""The connection of the online store: one Redis, or a cluster."""


def _slot(command: tuple[Argument, ...]) -> int:
    key = command[3] if command[0] == "EVALSHA" else command[1]
    return slot_of(key if isinstance(key, bytes) else str(key).encode())


def slot_of(key: bytes) -> int:
    """The slot of a key, by the Redis Cluster specification.

    It is the CRC-16 of the hash tag (the text between the first `{` and the next `}`), or of a key without
    one.
    """
    start = key.find(b"{")
    end = key.find(b"}", start + 1) if start >= 0 else -1
    return crc_hqx(key[start + 1 : end] if end > start + 1 else key, 0) % SLOTS


def _redirection(answer: Any) -> tuple[str, bytes]:
    """(MOVED or ASK, host:port), (TRYAGAIN or CLUSTERDOWN, b""), or ("", b"") for no redirection."""
    if not isinstance(answer, hiredis.HiredisError):
        return "", b""
    kind, *rest = str(answer).split()
    if kind in ("MOVED", "ASK"):
        return kind, rest[1].encode()
    return (kind, b"") if kind in ("TRYAGAIN", "CLUSTERDOWN") else ("", b"")
