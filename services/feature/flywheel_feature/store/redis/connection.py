"""One Redis connection shared by every caller: commands go out as they come, answers come back in order.

redis-py lends a connection to one command at a time; a read path with hundreds of calls in flight wants one write for whatever
is there and one parse for whatever came. This is the protocol around hiredis that does it, with reconnection and nothing more.
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
from flywheel_feature.encoding.same_length_keys import EqualKeys
from flywheel_feature.encoding.same_length_values import MANY, EqualReply
from flywheel_feature.online.errors import store_down

log = get_logger(__name__)

CONNECT_SECONDS = 2.0
KEPT_BYTES = 4 << 20
"""What a connection's buffer may keep. hiredis gives back more than 16 KiB after every reply, and the kernel then maps and clears each page
again for the next one: half of what a reply of 600 KB costs."""
Argument = bytes | str | int


class RedisReplyError(Internal):
    """Redis refused a command."""


class _Link(asyncio.Protocol):
    def __init__(self) -> None:
        self.waiting: deque[tuple[asyncio.Future[Any], int]] = deque()
        """Each with how many values of one length its reply may be; 0: any reply."""
        self.transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader()
        self._reader.setmaxbuf(KEPT_BYTES)
        self._equal: EqualReply | None = None
        self._out: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports implement asyncio.Transport without inheriting from it.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        while data:
            if self._equal is None and self.waiting and self.waiting[0][1] and not self._reader.has_data():
                self._equal = EqualReply(self.waiting[0][1])
            if self._equal is None:
                self._parse(data)
                return
            if not self._equal.add(data):
                received, self._equal = bytes(self._equal.received), None
                self._parse(received)
                return
            if not self._equal.whole:
                return
            equal, self._equal = self._equal, None
            self._answer(equal.values)
            data = equal.rest

    def _parse(self, data: bytes) -> None:
        self._reader.feed(data)
        # hiredis says False when no whole reply is there; Redis itself never answers False in RESP2.
        while (reply := self._reader.gets()) is not False:
            self._answer(reply)

    def _answer(self, reply: Any) -> None:
        future, _ = self.waiting.popleft()
        if not future.done():
            future.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        # Whatever the cause, the caller's answer is the same.
        del exc
        self.transport = None
        waiting, self.waiting = self.waiting, deque()
        for future, _ in waiting:
            if not future.done():
                future.set_exception(store_down())
                # Of many commands only the last is waited for.
                future.exception()

    def send(self, packed: bytes, equal: int = 0) -> asyncio.Future[Any]:
        """Everything sent in one turn of the event loop leaves in one write."""
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
    """`call` raises Unavailable ONLINE_STORE_DOWN while Redis is away; the next call connects again."""

    def __init__(self, url: str, *, timeout_seconds: float = 5.0) -> None:
        self._url = urlsplit(url)
        self._timeout = timeout_seconds
        self._link: _Link | None = None
        self._connecting = asyncio.Lock()

    async def call(self, *arguments: Argument) -> Any:
        """One command. Raises RedisReplyError when Redis refuses it."""
        link = self._link
        if link is None or link.transport is None:
            link = await self._connected()
        return checked(await self._answer(link.send(_packed(arguments))))

    async def mget(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """Values of at least one key in the order asked, None where there is none; EqualValues of many that are there and of one
        length."""
        link = self._link
        if link is None or link.transport is None:
            link = await self._connected()
        equal = len(keys) if len(keys) >= MANY else 0
        values: Sequence[bytes | None] = checked(await self._answer(link.send(_packed_mget(keys), equal)))
        return values

    async def calls(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """Many commands in one write. Answers may be exceptions of hiredis, one per refused command."""
        link = self._link
        if link is None or link.transport is None:
            link = await self._connected()
        futures = [link.send(_packed(c)) for c in commands]
        if futures:
            # Answers come in order: with the last one all are there.
            await self._answer(futures[-1])
        return [f.result() for f in futures]

    async def identity(self) -> str:
        """One server that falls back does so as a whole: positions and tiles stay true to one another."""
        return ""

    async def close(self) -> None:
        if self._link is not None and self._link.transport is not None:
            self._link.transport.close()

    async def _answer(self, future: asyncio.Future[Any]) -> Any:
        try:
            async with asyncio.timeout(self._timeout):
                return await future
        except TimeoutError:
            # A connection that stopped answering would hold every later call: start anew.
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
"""What stands between two arguments, the second of which has so many bytes. Formatting numbers is most of what packing costs."""


def _packed_mget(keys: Sequence[bytes]) -> bytes:
    """What hiredis would pack, at a third of the price."""
    if isinstance(keys, EqualKeys):
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
    """The reply, unless Redis refused. Raises RedisReplyError."""
    if isinstance(reply, hiredis.HiredisError):
        raise RedisReplyError(f"Redis refused a command: {reply}")
    return reply
