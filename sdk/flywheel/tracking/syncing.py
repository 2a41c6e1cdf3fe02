"""Sends the spools that processes left behind, because they crashed or the trainer was away at their end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flywheel.tracking.endpoint import Endpoint
from flywheel.tracking.errors import TrackingError
from flywheel.tracking.sending import Sender
from flywheel.tracking.spool import Spool

DESCRIPTION = "run.json"


@dataclass(frozen=True)
class Synced:
    """What became of one spool."""

    run: str
    sent: bool
    """Whether everything was answered; then the spool is gone."""
    problems: tuple[str, ...]


def sync_spools(root: Path, timeout: float, address: str = "") -> Iterator[Synced]:
    """Send each spool under `root` within `timeout` seconds, to its own trainer or to `address`.

    Spools of processes that run are left to them.
    """
    for file in sorted(root.glob(f"*/{DESCRIPTION}")):
        description = json.loads(file.read_text())
        try:
            spool = Spool(file.parent)
        except TrackingError as error:
            yield Synced(description["run"], False, (str(error),))
            continue
        endpoint = Endpoint.described(description, address)
        sender = Sender(spool, endpoint, description["run"], 60.0)
        sent = sender.drain(time.monotonic() + timeout)
        sender.close()
        spool.close(remove=sent)
        yield Synced(description["run"], sent, tuple(sender.problems))
