"""The hash chain of the audit."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from flywheel_registry.audit.chain import AuditEntry, entry_hash, first_break, genesis

MODEL = "projects/p/models/m"


def chain(reasons: list[str]) -> list[AuditEntry]:
    previous, entries = genesis(MODEL), []
    for i, reason in enumerate(reasons, 1):
        entry = AuditEntry(
            model=MODEL,
            sequence=i,
            at=datetime(2013, 1, 1, 0, 0, i, 5, tzinfo=UTC),
            actor="anna",
            action="PROMOTE",
            subject="s",
            from_state="A",
            to_state="B",
            reason=reason,
            evidence="e",
        )
        entry = replace(entry, hash=entry_hash(previous, entry))
        entries.append(entry)
        previous = entry.hash
    return entries


def test_entry_hash_follows_the_documented_formula() -> None:
    at = "2013-01-01T00:00:01.000005+00:00"
    body = f'["projects/p/models/m",1,"{at}","anna","PROMOTE","s","A","B","why é","e"]'
    expected = hashlib.sha256(hashlib.sha256(MODEL.encode()).digest() + body.encode()).hexdigest()
    assert chain(["why é"])[0].hash == expected


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=6), st.data())
def test_changed_removed_and_reordered_entries_are_detected(reasons: list[str], data: st.DataObject) -> None:
    entries = chain(reasons)
    assert first_break(MODEL, entries) is None
    i = data.draw(st.integers(0, len(entries) - 1))
    changed = [*entries]
    changed[i] = replace(changed[i], reason=changed[i].reason + "!")
    assert "was changed" in (first_break(MODEL, changed) or "")
    if i < len(entries) - 1:
        assert f"entry {i + 1} is missing" in (first_break(MODEL, entries[:i] + entries[i + 1 :]) or "")
        renumbered = [replace(e, sequence=n) for n, e in enumerate(entries[:i] + entries[i + 1 :], 1)]
        assert first_break(MODEL, renumbered) is not None
