"""Makes gRPC read its sockets in the thread that waits for its events (ADR 0104)."""

from __future__ import annotations

import os

SETTING = "GRPC_EXPERIMENTS"
ONE_POLLER = "-event_engine_poller_for_python"


def use_one_poller() -> None:
    """For this process, unless the environment has its own GRPC_EXPERIMENTS. Call it before the first import
    of grpc, which reads them; packages of services do so when they are imported.

    By default, gRPC for Python reads sockets in threads of their own, which wake the thread that waits for
    events, which wakes the event loop: three times as many context switches for each call.
    """
    os.environ.setdefault(SETTING, ONE_POLLER)
