"""The page of `flywheel monitor report` in a real browser: headless Chromium, over its DevTools protocol."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import struct
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from flywheel.monitor_report import report_page
from flywheel_protos.monitor.v1 import distribution_pb2, monitor_pb2
from tests.support.eventually import eventually
from tests.unit.sdk.test_monitor_report import content

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
    pytest.mark.timeout(120),
]
SECTIONS = ["Why", "Quality and latency", "Alerts", "Timelines", "Scores", "Features", "Segments"]


class Browser:
    """One tab. `requested`: the addresses that it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.requested: list[str] = []
        self.errors: list[str] = []

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json()
            self._note(message)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message: Any) -> None:
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(message["params"]["request"]["url"])
        if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.errors.append(str(message["params"]))

    async def open(self, page: Path, width: int, height: int) -> None:
        for domain in ("Network", "Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        await self.call("Page.navigate", url=page.as_uri())
        await eventually(self._complete, within=20)

    async def _complete(self) -> bool:
        return bool(await self.value("document.readyState === 'complete' && location.protocol === 'file:'"))

    async def value(self, expression: str) -> Any:
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"].get("value")


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    profile = tmp_path / "profile"
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")
    process = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *flags,
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        port_file = profile / "DevToolsActivePort"

        async def listening() -> list[str]:
            return port_file.read_text().split() if port_file.exists() else []

        port = (await eventually(listening, within=30))[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = await answer.json()
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            async with session.ws_connect(address, max_msg_size=1 << 26) as socket:
                yield Browser(socket)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def written(tmp_path: Path) -> Path:
    """A page with long names, many categories and an estimate."""
    shown = content(40)
    name = "carrier__" + "very_long_" * 12
    shares = [7 * i % 13 + 1 for i in range(40)]
    long = distribution_pb2.Distribution(
        name=name,
        categories=[f"category-{i:02d}" for i in range(40)],
        reference=shares,
        observed=shares[::-1],
    )
    shown.distributions.features.append(long)
    shown.report.features.append(monitor_pb2.FeatureDrift(feature=name, reason="PSI " * 80))
    for report in shown.timeline:
        report.estimate.auc = 0.75
    page = tmp_path / "report.html"
    page.write_text(report_page(shown), encoding="utf-8")
    return page


@pytest.mark.parametrize("width", [1200, 480])
async def test_the_page_renders_all_sections_and_requests_nothing(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    page = written(tmp_path)
    await browser.open(page, width, 900)
    assert [page.as_uri()] == [url for url in browser.requested if not url.startswith(("about:", "data:"))]
    assert [] == browser.errors
    boxes = await browser.value(
        "[...document.querySelectorAll('section')].map(s => {"
        "const r = s.getBoundingClientRect(), h = s.querySelector('h2');"
        "return [h.innerText, r.width, r.height, getComputedStyle(h).visibility]})"
    )
    assert SECTIONS == [box[0] for box in boxes]
    assert all(w > width / 2 and h > 40 and shown == "visible" for _, w, h, shown in boxes)
    assert await browser.value("document.documentElement.scrollWidth") <= width, "it does not scroll sideways"
    charts = await browser.value(
        "[...document.querySelectorAll('svg')].map(s => {"
        "const r = s.getBoundingClientRect(); return [s.getAttribute('class'), r.width, r.height]})"
    )
    assert {"line", "bars"} == {kind for kind, _, _ in charts}
    assert all(0 < w <= width and h > 20 for _, w, h in charts)


async def test_the_marks_have_size_and_colour(browser: Browser, tmp_path: Path) -> None:
    await browser.open(written(tmp_path), 1200, 900)
    bars = await browser.value(
        "[...document.querySelectorAll('rect.observed')].filter(r => r.height.baseVal.value > 0)"
        ".map(r => [getComputedStyle(r).fill, r.getBoundingClientRect().height])"
    )
    assert len(bars) > 40
    assert {"rgb(47, 111, 222)"} == {fill for fill, _ in bars} and all(h > 0 for _, h in bars)
    drift = await browser.value("getComputedStyle(document.querySelector('.DRIFT')).backgroundColor")
    assert "rgb(251, 217, 214)" == drift
    shot = b64decode((await browser.call("Page.captureScreenshot"))["data"])
    assert shot.startswith(b"\x89PNG") and (1200, 900) == struct.unpack(">II", shot[16:24])


async def test_text_of_users_is_no_markup(browser: Browser, tmp_path: Path) -> None:
    await browser.open(written(tmp_path), 1200, 900)
    text = await browser.value("document.body.innerText")
    assert "v__<x>" in text and "carrier=<UA>" in text
    assert 0 == await browser.value("document.querySelectorAll('script, link, img, iframe').length")
