"""The entry point of every Flywheel process.

def serve() -> None:
    main("registry", RegistrySettings, build)

async def build(settings: RegistrySettings, stack: AsyncExitStack) -> Server:
    pool = await stack.enter_async_context(create_pool(settings.dsn))
    ...
    return server
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import NoReturn, TypeVar

import uvloop

from flywheel_common.config import EXIT_BAD_SETTINGS, ServiceSettings, load
from flywheel_common.errors import FlywheelError
from flywheel_common.process.supervision import BackgroundFailed
from flywheel_common.process.worker import EXIT_CRASH, EXIT_DEPENDENCY, PortTaken, Worker
from flywheel_common.telemetry.logs import configure_logs, get_logger
from flywheel_common.telemetry.meters import configure_metering
from flywheel_common.telemetry.traces import configure_telemetry

S = TypeVar("S", bound=ServiceSettings)
Build = Callable[[S, AsyncExitStack], Awaitable[Worker]]


def main(service_name: str, settings: type[S] | S, build: Build[S]) -> NoReturn:
    """Loads the settings (unless given), sets up logs and traces, builds the process and runs it until a
    signal.

    Exit status: 0 after a signal, 1 after a crash, 2 for invalid settings, 3 for a port in use, 4 when a
    dependency could not be reached at start.
    """
    loaded = load(settings) if isinstance(settings, type) else settings
    configure_logs(f"flywheel-{service_name}", loaded.log_level)
    log = get_logger(__name__)
    code = 0
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(service_name, loaded, _freeze_after(build)))
    except PortTaken as error:
        code = _print_error(str(error), int(error.code or 1))
    except FlywheelError as error:
        code = _print_error(error.message, EXIT_DEPENDENCY)
    except ValueError as error:
        log.error("cannot start", exc_info=error)
        code = _print_error(str(error), EXIT_BAD_SETTINGS)
    except BackgroundFailed as error:
        code = _print_error(f"{error} Its traceback is in the log.", EXIT_CRASH)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        log.error("crashed", exc_info=error)
        code = EXIT_CRASH
    sys.stdout.flush()
    raise SystemExit(code)


async def run(service_name: str, settings: S, build: Build[S]) -> None:
    """`main` without the process around it: for tests and embedding."""
    tracing = configure_telemetry(f"flywheel-{service_name}", settings.otlp_endpoint, settings.trace_ratio)
    metering = configure_metering(f"flywheel-{service_name}", settings.otlp_endpoint)
    try:
        async with AsyncExitStack() as stack:
            process = await build(settings, stack)
            await process.run_until_signal()
    finally:
        await asyncio.to_thread(tracing.close)
        await asyncio.to_thread(metering.close)


def _freeze_after(build: Build[S]) -> Build[S]:
    """Excludes everything that was imported and built from garbage collection, because it lives as long as
    the process.

    An S3 client alone is tens of thousands of objects; collections of them delayed the slowest lookups (ADR
    0033).
    """

    async def built(settings: S, stack: AsyncExitStack) -> Worker:
        process = await build(settings, stack)
        gc.collect()
        gc.freeze()
        return process

    return built


def _print_error(message: str, code: int) -> int:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
    return code
