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

    Spools of processes that run are left to them. One that cannot be sent does not stop the others; if its
    description cannot be read, the name of its folder stands for the run.
    """
    for file in sorted(root.glob(f"*/{DESCRIPTION}")):
        run = file.parent.name
        try:
            description = json.loads(file.read_text())
            run = description["run"]
            yield _sent(run, file.parent, Endpoint.described(description, address), timeout)
        except (TrackingError, OSError) as error:
            yield Synced(run, False, (str(error),))
        except (ValueError, KeyError, TypeError) as error:
            yield Synced(run, False, (f"{file} cannot be read: {error!r}.",))


def _sent(run: str, folder: Path, endpoint: Endpoint, timeout: float) -> Synced:
    spool, sent = Spool(folder), False
    try:
        sender = Sender(spool, endpoint, run, 60.0)
        try:
            sent = sender.drain(time.monotonic() + timeout)
        finally:
            sender.close()
    finally:
        spool.close(remove=sent)
    return Synced(run, sent, tuple(sender.problems))
