"""A process that serves the echo service: `python -m tests.support.servers.echo_process [unavailable | bug |
crash]`."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

from pydantic_settings import SettingsConfigDict

from flywheel_common.config import ServiceSettings
from flywheel_common.errors import Unavailable
from flywheel_common.grpc.server import Server
from flywheel_common.process.runtime import main
from flywheel_common.process.supervision import RestartRule
from tests.support.echo import SERVICE, Echo, add_echo


class EchoSettings(ServiceSettings):
    """Settings from FLYWHEEL_ECHO_…"""

    model_config = SettingsConfigDict(env_prefix="FLYWHEEL_ECHO_")


async def build(settings: EchoSettings, stack: AsyncExitStack) -> Server:
    """The server; the arguments make it fail."""
    stack.callback(lambda: print("closed", file=sys.stderr, flush=True))
    if "unavailable" in sys.argv:
        raise Unavailable("PostgreSQL is down: start it.")
    if "bug" in sys.argv:
        raise KeyError("x")
    server = Server(
        settings,
        servicers=[(add_echo, Echo())],
        full_service_names=[SERVICE],
        restarts=RestartRule(first_delay_seconds=0.05),
    )

    async def crash() -> None:
        raise RuntimeError("broken")

    if "crash" in sys.argv:
        server.add_background("relay", crash)
    server.health.set_ready()
    return server


if __name__ == "__main__":
    main("echo", EchoSettings, build)
