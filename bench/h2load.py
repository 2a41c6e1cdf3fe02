"""Generates load with h2load (nghttp2), as a Python client would be the bottleneck; checks answer sizes."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PACKAGE = "nghttp2-client"
LOAD_SECONDS = 300
"""After this time a load has failed: a server has stopped answering."""


class ToolMissing(RuntimeError):
    """A program is not installed; the message names the package to install."""


class WrongAnswers(RuntimeError):
    """Answers under load differ from the answer of a single call."""


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a load: calls per second, latencies in milliseconds."""

    per_second: float
    p50: float
    p99: float


def require() -> str:
    """The path of h2load. Raises ToolMissing."""
    found = shutil.which("h2load")
    if found is None:
        raise ToolMissing(f"h2load is missing: install the package {PACKAGE} (apt-get install {PACKAGE})")
    return found


def load(
    address: str,
    method: str,
    message: bytes,
    answer_bytes: int | None,
    *,
    concurrent: int,
    calls: int,
    varies_by: int = 0,
) -> Load:
    """Make `calls` unary gRPC calls, `concurrent` at a time on up to four connections.

    Raises WrongAnswers unless each answer has status 200 and a message of `answer_bytes`: a gRPC error also
    has status 200, but no message. If `answer_bytes` is None, all answers must have the same length of at
    least one byte. Lengths may differ by `varies_by` bytes on average.
    """
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
        varies_by,
    )


def load_http(address: str, path: str, body: bytes | None, *, concurrent: int, calls: int) -> Load:
    """As `load`, with HTTP/1.1 POSTs of JSON, or GETs without a body, on `concurrent` connections."""
    headers = ["content-type: application/json"]
    return _run(f"http://{address}{path}", body, headers, ["--h1", "-c", concurrent], calls, None)


def _run(
    url: str,
    body: bytes | None,
    headers: list[str],
    options: list[object],
    calls: int,
    answer_bytes: int | None,
    varies_by: int = 0,
) -> Load:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        data, log = Path(folder) / "body", Path(folder) / "log"
        header_options = [option for h in headers for option in ("-H", h)]
        files = ["--log-file", log]
        if body is not None:
            data.write_bytes(body)
            files += ["-d", data]
        command = [require(), "-n", calls, *options, "-t", 1, *files, *header_options, url]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=True, timeout=LOAD_SECONDS
        )
        micros = np.loadtxt(log, usecols=2)
    text = done.stdout
    rate = re.search(r"finished in [^,]+, ([\d.]+) req/s", text)
    good = re.search(r"status codes: (\d+) 2xx", text)
    data_bytes = re.search(r"space savings [^)]*\), [^(]+\((\d+)\) data", text)
    if rate is None or good is None or data_bytes is None:
        raise WrongAnswers(text)
    found, total = int(good[1]), int(data_bytes[1])
    wanted = calls * answer_bytes if answer_bytes is not None else max(total // calls, 6) * calls
    if found != calls or abs(total - wanted) > varies_by * calls:
        raise WrongAnswers(
            f"{found} of {calls} calls were answered 200, with {total} bytes; {wanted} were expected"
        )
    return Load(
        float(rate[1]), float(np.percentile(micros, 50)) / 1e3, float(np.percentile(micros, 99)) / 1e3
    )
