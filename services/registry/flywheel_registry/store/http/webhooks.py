"""HTTP POST with aiohttp."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp

TRY_SECONDS = 10.0
MAX_TEXT = 200


class AiohttpPost:
    """`HttpPost` on one session. Redirects are not followed: they could lead to other hosts."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int | str:
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                return answer.status
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"[:MAX_TEXT]


@asynccontextmanager
async def http_post() -> AsyncIterator[AiohttpPost]:
    """Yield an `HttpPost`, closed at the end. It keeps no cookies and reads no proxy settings."""
    timeout = aiohttp.ClientTimeout(total=TRY_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield AiohttpPost(session)
