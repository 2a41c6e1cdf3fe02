"""One Redis connection shared by all callers: commands are pipelined, answers come back in order.

redis-py gives a connection to one command at a time. A read path with hundreds of calls in flight needs one
write for all pending commands and one parse for all received answers. This module is the asyncio protocol
around hiredis that does so, with reconnection and nothing else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import hiredis

from flywheel_common.errors import Internal
from flywheel_common.telemetry.logs import get_logger
from flywheel_feature.encoding.same_length_keys import SameLengthKeys
from flywheel_feature.encoding.same_length_values import MANY, SameLengthReply
from flywheel_feature.online.errors import store_down

log = get_logger(__name__)

CONNECT_SECONDS = 2.0
KEPT_BYTES = 4 << 20
"""Memory that the buffer of a connection keeps between replies. By default hiredis frees all above 16 KiB
after every reply, and the kernel maps and clears the pages again for the next one: half the cost of a reply
of 600 KB."""
Argument = bytes | str | int


class RedisReplyError(Internal):
    """Redis refused a command."""


class _Link(asyncio.Protocol):
    """The protocol of one open connection."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[asyncio.Future[Any], int]] = deque()
        """(future of a reply, how many values of one length the reply may have; 0: any reply), in order."""
        self.transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._reader.setmaxbuf(KEPT_BYTES)
        self._equal: SameLengthReply | None = None
        self._out: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports implement asyncio.Transport without inheriting from it.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        while data:
            if self._equal is None and self.waiting and self.waiting[0][1] and not self._reader.has_data():
                self._equal = SameLengthReply(self.waiting[0][1])
            if self._equal is None:
                self._parse(data)
                return
            if not self._equal.add(data):
                received, self._equal = bytes(self._equal.received), None
                self._parse(received)
                return
            if not self._equal.complete:
                return
            equal, self._equal = self._equal, None
            self._answer(equal.values)
            data = equal.rest

    def _parse(self, data: bytes) -> None:
        self._reader.feed(data)
        # hiredis returns False for an incomplete reply; a RESP2 reply is never False.
        while (reply := self._reader.gets()) is not False:
            self._answer(reply)

    def _answer(self, reply: Any) -> None:
        future, _ = self.waiting.popleft()
        if not future.done():
            future.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        # The callers get the same error for every cause.
        del exc
        self.transport = None
        waiting, self.waiting = self.waiting, deque()
        for future, _ in waiting:
            if not future.done():
                future.set_exception(store_down())
                # Marks the exception as retrieved: `calls` awaits only the last of its futures.
                future.exception()

    def send(self, packed: bytes, equal: int = 0) -> asyncio.Future[Any]:
        """Queue a command; all commands queued in one iteration of the event loop go out in one write."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self.waiting.append((future, equal))
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        return future

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self.transport is not None:
            self.transport.write(b"".join(out))


class RedisPipe:
    """A connection that is opened when needed.

    Every method raises Unavailable ONLINE_STORE_DOWN while Redis is unreachable; the next call connects
    again.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 5.0) -> None:
        self._url = urlsplit(url)
        self._timeout = timeout_seconds
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()

    async def call(self, *arguments: Argument) -> Any:
        """Send one command. Raises RedisReplyError when Redis refuses it."""
        link = self._link
        if link is None or link.transport is None:
            link = await self._connected()
        return checked(await self._answer(link.send(_packed(arguments))))

    async def mget(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The values of at least one key, in the order of the keys; None for a missing key.

        Many values that all exist and have one length come as `SameLengthValues`.
        """
        link = self._link
        if link is None or link.transport is None:
            link = await self._connected()
        equal = len(keys) if len(keys) >= MANY else 0
        values: Sequence[bytes | None] = checked(await self._answer(link.send(_packed_mget(keys), equal)))
        return values

    async def calls(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """Send many commands in one write; the answer of a refused command is an exception of hiredis."""
        link = self._link
        if link is None or link.transport is None:
            link = await self._connected()
        futures = [link.send(_packed(c)) for c in commands]
        if futures:
            # Answers arrive in order, so all have arrived with the last one.
            await self._answer(futures[-1])
        return [f.result() for f in futures]

    async def identity(self) -> str:
        """Empty: a single server loses data as a whole, so that positions and tiles stay consistent."""
        return ""

    async def close(self) -> None:
        if self._link is not None and self._link.transport is not None:
            self._link.transport.close()

    async def _answer(self, future: asyncio.Future[Any]) -> Any:
        try:
            async with asyncio.timeout(self._timeout):
                return await future
        except TimeoutError:
            # A connection that stopped answering would block every later call: close it.
            if self._link is not None and self._link.transport is not None:
                self._link.transport.abort()
            raise store_down() from None

    async def _connected(self) -> _Link:
        async with self._connecting:
            if self._link is not None and self._link.transport is not None:
                return self._link
            loop = asyncio.get_running_loop()
            tls = ssl.create_default_context() if self._url.scheme == "rediss" else None
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    transport, link = await loop.create_connection(
                        _Link, self._url.hostname or "127.0.0.1", self._url.port or 6379, ssl=tls
                    )
                    try:
                        await self._greet(link)
                    except BaseException:
                        transport.abort()
                        raise
            except (OSError, TimeoutError) as error:
                raise store_down() from error
            self._link = link
            return link

    async def _greet(self, link: _Link) -> None:
        hello: list[tuple[Argument, ...]] = []
        if self._url.password:
            user = (unquote(self._url.username),) if self._url.username else ()
            hello.append(("AUTH", *user, unquote(self._url.password)))
        database = self._url.path.strip("/")
        if database and database != "0":
            hello.append(("SELECT", database))
        hello.append(("PING",))
        try:
            for reply in [await link.send(_packed(c)) for c in hello]:
                checked(reply)
        except RedisReplyError as error:
            raise store_down() from error


def _packed(command: tuple[Argument, ...]) -> bytes:
    # The stub knows tuples of one element only.
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


_HEADS = [b"\r\n$%d\r\n" % n for n in range(512)]
"""The separator before an argument of n bytes, by n, as formatting numbers is most of the cost of packing."""


def _packed_mget(keys: Sequence[bytes]) -> bytes:
    """An MGET command, the same bytes as hiredis packs, at a third of the cost."""
    if isinstance(keys, SameLengthKeys):
        return b"*%d\r\n$4\r\nMGET\r\n%b" % (len(keys) + 1, keys.written(lambda n: b"$%d\r\n" % n, b"\r\n"))
    if max(map(len, keys)) >= len(_HEADS):
        return _packed(("MGET", *keys))
    heads = _HEADS
    pieces = [b"\r\n"] * (2 * len(keys) + 2)
    pieces[0] = b"*%d\r\n$4\r\nMGET" % (len(keys) + 1)
    pieces[1:-1:2] = [heads[len(k)] for k in keys]
    pieces[2::2] = keys
    return b"".join(pieces)


def checked(reply: Any) -> Any:
    """The reply. Raises RedisReplyError for an error reply."""
    if isinstance(reply, hiredis.HiredisError):
        raise RedisReplyError(f"Redis refused a command: {reply}")
    return reply
