"""The consumer of the monitor alone, in a process of its own: `serve`'s loop, handler and store.

Arguments: Kafka, DSN, group. It says `ready` when it could begin, and begins when
its input has a line. PROFILE names a file for its profile.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import logging
import os
import sys

from bench.monitor.stream_events import reference
from flywheel_common.clock import SystemClock
from flywheel_common.event_time import EventTimeBound
from flywheel_common.kafka.consumer import ConsumerLoop
from flywheel_common.postgres.migrate import migrate
from flywheel_monitor.config import MonitorSettings
from flywheel_monitor.ingest.consumer import EventHandler
from flywheel_monitor.references.reference import Reference
from flywheel_monitor.server import CONSUMED, MIGRATIONS
from flywheel_monitor.store.postgres.pool import monitor_pool
from flywheel_monitor.store.postgres.records import PostgresStore
from flywheel_monitor.store.postgres.versions import VersionCache

PANE_US = 60_000_000
BATCH_RECORDS: int = MonitorSettings.model_fields["batch_records"].default
LINGER_SECONDS: float = MonitorSettings.model_fields["linger_seconds"].default


class OneReference:
    """The same reference for every version."""

    async def fetch(self, _: str) -> Reference:
        return reference()


async def main() -> None:
    bootstrap, dsn, group = sys.argv[1:4]
    logging.disable()
    async with monitor_pool(dsn) as pool:
        await migrate(pool, MIGRATIONS)
        store = PostgresStore(pool, VersionCache(pool, OneReference()), PANE_US)
        loop = ConsumerLoop(
            bootstrap=bootstrap,
            group=group,
            topics=CONSUMED,
            handler=EventHandler(store.on, EventTimeBound(SystemClock(), 300.0)).handle,
            pool=pool,
            decode_events=False,
            batch_records=BATCH_RECORDS,
            linger_seconds=LINGER_SECONDS,
        )
        # As the service does when it is built (flywheel_common.process.runtime).
        gc.collect()
        gc.freeze()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        profile = cProfile.Profile() if os.environ.get("PROFILE") else None
        if profile is not None:
            profile.enable()
        task = asyncio.create_task(loop.run())
        try:
            await asyncio.to_thread(sys.stdin.readline)
        finally:
            if profile is not None:
                profile.disable()
                profile.dump_stats(os.environ["PROFILE"])
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
