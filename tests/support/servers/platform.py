"""Fixtures: a whole platform of real processes, and the flights example played on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flywheel_local import ports
from flywheel_local.platform import Platform

EXAMPLE = Path(__file__).parents[3] / "examples" / "flights" / "main.py"
SERVICES = ("feature", "registry", "trainer", "inference", "monitor")


@pytest.fixture(scope="module")
def platform(backends_directory: Path) -> Iterator[Platform]:
    """A running platform on free ports; stopping it must leave no process."""
    directory = backends_directory / "platform"
    directory.mkdir()
    directory.chmod(0o755)
    running = Platform(directory / "data", directory / "log", ports.free(ports.OFFSETS))
    running.backends.kafka.brief = True
    with running:
        yield running
    children = [
        p for p in psutil.Process().children(recursive=True) if str(directory) in " ".join(p.cmdline())
    ]
    assert children == [], "processes of the platform are still running"


@pytest.fixture(scope="module")
def client_environment(platform: Platform) -> dict[str, str]:
    """Environment of a client process of the platform."""
    return {**os.environ, **platform.client_environment}


@pytest.fixture(scope="module")
def example_output(client_environment: dict[str, str]) -> str:
    """Output of the flights example, which must succeed on its slice of the year (until April 22)."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env={**client_environment, "SCOPE": "slice"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture
def addresses(platform: Platform) -> dict[str, str]:
    """Addresses of the five services, as keyword arguments of `fw.Client`."""
    return {name: f"127.0.0.1:{platform.ports[name]}" for name in SERVICES}
