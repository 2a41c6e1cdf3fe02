"""The hash chain of a model's audit: the hash of each entry covers the hash of the entry before it.

hash(n) = SHA-256(hash(n - 1) ‖ canonical JSON of entry n), hash(0) = SHA-256(model name). Changing, removing
or reordering a stored entry breaks the chain from there on. That the newest entries were removed shows in the
heads beside the chain (`verification`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One audit entry. `at` is wall time in whole microseconds, the resolution of PostgreSQL.

    `evidence` is a resource name or empty, `evidence_hash` the hash of that evidence: through it the chain
    covers what the evidence says.
    """

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
    evidence_hash: str = ""
    hash: str = ""


@dataclass(frozen=True, slots=True)
class AuditHead:
    """Sequence number and hash of the newest entry of a chain; 0 and empty without entries."""

    sequence: int = 0
    hash: str = ""


def genesis(model: str) -> str:
    """Return the hash that precedes the first entry."""
    return hashlib.sha256(model.encode()).hexdigest()


def entry_hash(previous: str, entry: AuditEntry) -> str:
    """Return the lower-case hex SHA-256 of `entry` after `previous`, without the entry's own `hash`."""
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
            *([entry.evidence_hash] if entry.evidence_hash else []),
        ],
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return hashlib.sha256(bytes.fromhex(previous) + body.encode()).hexdigest()


def first_break(model: str, entries: Iterable[AuditEntry]) -> str | None:
    """Return None when the chain (oldest first) is intact, else a sentence about the first broken entry."""
    previous, expected = genesis(model), 1
    for entry in entries:
        if entry.sequence != expected:
            return f"{model}: entry {expected} is missing (found {entry.sequence})"
        if entry_hash(previous, entry) != entry.hash:
            return f"{model}: entry {entry.sequence} was changed after it was written"
        previous, expected = entry.hash, expected + 1
    return None
