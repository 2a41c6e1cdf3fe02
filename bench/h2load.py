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
    address: str, method: str, message: bytes, answer_bytes: int, *, concurrent: int, calls: int
) -> Load:
    """`calls` unary gRPC calls, `concurrent` at a time (up to four connections). Raises WrongAnswers unless each was answered 200 with a
    message of `answer_bytes`: an error has no message, so it cannot pass for a fast answer."""
    connections = min(4, concurrent)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
        done = subprocess.run(
            [
                require(), "-n", str(calls), "-c", str(connections), "-m", str(concurrent // connections), "-t", "1",
                "-d", str(body), "--log-file", str(log), "-H", "content-type: application/grpc", "-H", "te: trailers",
                "-H", "grpc-timeout: 5S", f"http://{address}{method}",
            ],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        micros = np.loadtxt(log, usecols=2)
    text = done.stdout
    rate = re.search(r"finished in [^,]+, ([\d.]+) req/s", text)
    good = re.search(r"status codes: (\d+) 2xx", text)
    data = re.search(r"space savings [^)]*\), [^(]+\((\d+)\) data", text)
    if rate is None or good is None or data is None:
        raise WrongAnswers(text)
    if int(good[1]) != calls or int(data[1]) != calls * (answer_bytes + 5):
        raise WrongAnswers(
            f"{good[1]} of {calls} calls were answered 200, with {data[1]} bytes; {calls * (answer_bytes + 5)} were expected"
        )
    return Load(
        float(rate[1]), float(np.percentile(micros, 50)) / 1e3, float(np.percentile(micros, 99)) / 1e3
    )
