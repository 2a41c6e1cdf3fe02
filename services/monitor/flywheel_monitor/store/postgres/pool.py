"""The connections to the monitor's database."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from flywheel_common.postgres.pool import Pool, create_pool


def monitor_pool(
    dsn: str,
    *,
    application_name: str = "flywheel-monitor",
    max_size: int = 10,
    statement_timeout_seconds: float = 10.0,
) -> AbstractAsyncContextManager[Pool]:
    """`create_pool` with statements that are planned once: their arguments are arrays, for which PostgreSQL
    would plan them again on each call (ADR 0102)."""
    return create_pool(
        dsn,
        application_name=application_name,
        max_size=max_size,
        statement_timeout_seconds=statement_timeout_seconds,
        plan_once=True,
    )
