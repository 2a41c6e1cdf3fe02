"""What the verification of an audit finds, beside its chain."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flywheel_registry.audit.chain import AuditEntry, AuditHead, entry_hash, genesis
from flywheel_registry.audit.verification import audit_faults

MODEL = "projects/p/models/late"
AT = datetime(2026, 1, 1, tzinfo=UTC)


def chain(n: int) -> list[AuditEntry]:
    """Return n entries; each even one was decided on the evidence with half its number."""
    entries, previous = [], genesis(MODEL)
    for i in range(1, n + 1):
        evidence = (f"{MODEL}/evidence/{i // 2}", f"hash {i // 2}") if i % 2 == 0 else ("", "")
        at = AT + timedelta(hours=i)
        entry = AuditEntry(MODEL, i, at, "ann", "PROMOTE", "v", "A", "B", "why", *evidence)
        previous = entry_hash(previous, entry)
        entries.append(replace(entry, hash=previous))
    return entries


ENTRIES = chain(6)
INTACT: dict[str, Any] = {
    "entries": ENTRIES,
    "head": AuditHead(6, ENTRIES[5].hash),
    "sent": {2: ENTRIES[1].hash, 6: ENTRIES[5].hash},
    "evidence_hashes": {1: "hash 1", 2: "hash 2", 3: "hash 3"},
    "evidence_count": 3,
}


def test_an_intact_audit_has_no_faults() -> None:
    assert [] == list(audit_faults(MODEL, **INTACT))
    empty = {"entries": [], "head": AuditHead(), "sent": {}, "evidence_hashes": {}, "evidence_count": 0}
    assert [] == list(audit_faults(MODEL, **empty))


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({"entries": ENTRIES[:4], "sent": {}}, ["ends with entry 4, the last one was entry 6"]),
        ({"entries": [], "sent": {}}, ["ends with entry 0, the last one was entry 6"]),
        # The head was changed to match: the event still tells.
        ({"entries": ENTRIES[:4], "head": AuditHead(4, ENTRIES[3].hash)}, ["entry 6 is missing that"]),
        ({"entries": [], "head": AuditHead()}, ["entry 2 is missing", "entry 6 is missing"]),
        ({"sent": {2: "another"}}, ["entry 2 is not the one that an event was sent with"]),
        ({"evidence_hashes": {1: "hash 1", 3: "hash 3"}}, ["evidence 2 is missing"]),
        ({"evidence_count": 4}, ["evidence 4 is missing"]),
        (
            {"evidence_hashes": {1: "hash 1", 2: "changed", 3: "hash 3"}},
            ["evidence 2 was changed after it was written"],
        ),
        ({"entries": [*ENTRIES[:2], *ENTRIES[3:]], "sent": {}}, ["entry 3 is missing (found 4)"]),
    ],
)
def test_each_removal_or_change_is_found(change: dict[str, Any], faults: list[str]) -> None:
    found = list(audit_faults(MODEL, **{**INTACT, **change}))
    assert len(faults) == len(found), found
    for words, sentence in zip(faults, found, strict=True):
        assert words in sentence
