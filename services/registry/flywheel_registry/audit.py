"""The audit of a model: an append-only chain in which every entry's hash covers the one before.

hash(n) = SHA-256(hash(n - 1) ‖ canonical JSON of entry n), hash(0) = SHA-256(model name). Changing, removing or
reordering a stored entry breaks the chain from there on; only cutting off the newest entries needs an outside
witness (the events on `model.stage_changed` and the logs name them).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line; `at` is wall time in whole microseconds (what PostgreSQL keeps)."""

    model: str
    sequence: int
    at: datetime
    actor: str
    action: str
    subject: str
    from_state: str
    to_state: str
    reason: str
    evidence: str
    hash: str = ""


def genesis(model: str) -> str:
    """Hash before the first entry."""
    return hashlib.sha256(model.encode()).hexdigest()


def entry_hash(previous: str, entry: AuditEntry) -> str:
    """Lower-case hex SHA-256 of `entry` after `previous`; the entry's own `hash` does not count."""
    body = json.dumps(
        [
            entry.model,
            entry.sequence,
            entry.at.astimezone(UTC).isoformat(timespec="microseconds"),
            entry.actor,
            entry.action,
            entry.subject,
            entry.from_state,
            entry.to_state,
            entry.reason,
            entry.evidence,
        ],
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return hashlib.sha256(bytes.fromhex(previous) + body.encode()).hexdigest()


def first_break(model: str, entries: Iterable[AuditEntry]) -> str | None:
    """None when the chain (oldest first) holds, else a sentence that names the first entry that does not fit."""
    previous, expected = genesis(model), 1
    for entry in entries:
        if entry.sequence != expected:
            return f"{model}: entry {expected} is missing (found {entry.sequence})"
        if entry_hash(previous, entry) != entry.hash:
            return f"{model}: entry {entry.sequence} was changed after it was written"
        previous, expected = entry.hash, expected + 1
    return None
