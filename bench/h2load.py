"""Load from a C client (h2load of nghttp2), because a Python client would be the bottleneck. Answers are checked by their bytes."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PACKAGE = "nghttp2-client"


class ToolMissing(RuntimeError):
    """A program this machine lacks; the message names the package to install."""


class WrongAnswers(RuntimeError):
    """The load was not answered as a single call was."""


@dataclass(frozen=True, slots=True)
class Load:
    per_second: float
    p50: float
    """Milliseconds."""
    p99: float


def require() -> str:
    found = shutil.which("h2load")
    if found is None:
        raise ToolMissing(f"h2load is missing: install the package {PACKAGE} (apt-get install {PACKAGE})")
    return found


def load(
    address: str, method: str, message: bytes, answer_bytes: int | None, *, concurrent: int, calls: int
) -> Load:
    """`calls` unary gRPC calls, `concurrent` at a time (up to four connections). Raises WrongAnswers unless each was answered 200 with a
    message of `answer_bytes`: an error has no message, so it cannot pass for a fast answer. Without a length every answer must have
    the average one of at least a byte."""
    connections = min(4, concurrent)
    body = b"\0" + len(message).to_bytes(4, "big") + message
    headers = ["content-type: application/grpc", "te: trailers", "grpc-timeout: 5S"]
    expected = None if answer_bytes is None else answer_bytes + 5
    return _run(
        f"http://{address}{method}",
        body,
        headers,
        ["-c", connections, "-m", concurrent // connections],
        calls,
        expected,
    )


def load_http(address: str, path: str, body: bytes, *, concurrent: int, calls: int) -> Load:
    """The same with HTTP/1.1 POSTs of JSON, a connection for each at a time."""
    return _run(
        f"http://{address}{path}",
        body,
        ["content-type: application/json"],
        ["--h1", "-c", concurrent],
        calls,
        None,
    )


def _run(
    url: str, body: bytes, headers: list[str], how: list[object], calls: int, answer_bytes: int | None
) -> Load:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        data, log = Path(folder) / "body", Path(folder) / "log"
        data.write_bytes(body)
        command = [
            require(), "-n", calls, *how, "-t", 1, "-d", data, "--log-file", log, *(x for h in headers for x in ("-H", h)), url,
        ]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        micros = np.loadtxt(log, usecols=2)
    text = done.stdout
    rate = re.search(r"finished in [^,]+, ([\d.]+) req/s", text)
    good = re.search(r"status codes: (\d+) 2xx", text)
    data_bytes = re.search(r"space savings [^)]*\), [^(]+\((\d+)\) data", text)
    if rate is None or good is None or data_bytes is None:
        raise WrongAnswers(text)
    found, total = int(good[1]), int(data_bytes[1])
    wanted = calls * answer_bytes if answer_bytes is not None else max(total // calls, 6) * calls
    if found != calls or total != wanted:
        raise WrongAnswers(
            f"{found} of {calls} calls were answered 200, with {total} bytes; {wanted} were expected"
        )
    return Load(
        float(rate[1]), float(np.percentile(micros, 50)) / 1e3, float(np.percentile(micros, 99)) / 1e3
    )
