"""A TCP proxy that injects faults between a client and a backend."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self


class FaultProxy:
    """`async with FaultProxy("127.0.0.1", 7301) as proxy:` and connect to `proxy.address`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._ending = asyncio.Event()
        self._ending.set()
        self._refusing = False
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Breaks all connections and refuses new ones until `heal`."""
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        """Breaks all connections; accepts new ones."""
        for writer in list(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Keeps connections open but forwards nothing until `heal`."""
        self._flowing.clear()

    def hide_ends(self) -> None:
        """Passes all data on, but not that the backend has closed a connection, until `heal`."""
        self._ending.clear()

    def heal(self) -> None:
        """Ends all faults."""
        self._refusing = False
        self._ending.set()
        self._flowing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self._flowing.set()
        self._ending.set()
        self.reset()
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            back_reader, back_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, back_writer}
        self._writers |= pair
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, back_writer))
                tasks.create_task(self._pump(back_reader, writer))
        finally:
            self._writers -= pair
            for end in pair:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
            await self._ending.wait()
        writer.transport.abort() if writer.transport.is_closing() else writer.close()
