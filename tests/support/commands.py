"""Runs of the `flywheel` command in this process."""

from __future__ import annotations

import asyncio
from typing import Any

from typer.testing import CliRunner

from flywheel.cli.main import app


async def flywheel(*words: str, project: str = "default", **addresses: str) -> Any:
    """Run `flywheel` with these words, beside the event loop, and return its result.

    `addresses`: name of a service → host:port.
    """
    env = {f"FLYWHEEL_{service.upper()}_ADDRESS": address for service, address in addresses.items()}
    env["FLYWHEEL_PROJECT"] = project
    return await asyncio.to_thread(CliRunner().invoke, app, list(words), env=env)
