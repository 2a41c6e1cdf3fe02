"""Verification of a model's audit against everything that witnesses it.

The chain itself shows entries that were changed, reordered or removed in the middle. The head in the model's
row, and the heads that went out with events, show a removed end or a removed chain. The hashes in the
entries, and the count in the model's row, show evidence that was changed or removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flywheel_registry.audit.chain import AuditEntry, AuditHead, first_break


def audit_faults(
    model: str,
    entries: Sequence[AuditEntry],
    head: AuditHead,
    sent: Mapping[int, str],
    evidence_hashes: Mapping[int, str],
    evidence_count: int,
) -> Iterator[str]:
    """Yield one sentence for each fault of a model's audit; nothing when it is intact.

    `entries` are oldest first. `head` and `evidence_count` come from the model's row, `sent` maps sequence
    numbers to the hashes that events carried, `evidence_hashes` the numbers of the stored evidence to its
    hashes.
    """
    broken = first_break(model, entries)
    if broken is not None:
        yield broken
    last = AuditHead(entries[-1].sequence, entries[-1].hash) if entries else AuditHead()
    if broken is None and last != head:
        yield f"{model}: the audit ends with entry {last.sequence}, the last one was entry {head.sequence}"
    hashes = {entry.sequence: entry.hash for entry in entries}
    for sequence, sent_hash in sorted(sent.items()):
        if hashes.get(sequence) != sent_hash:
            what = "is missing" if sequence not in hashes else "is not the one"
            yield f"{model}: entry {sequence} {what} that an event was sent with"
    named = {
        int(entry.evidence.rpartition("/")[2]): entry.evidence_hash
        for entry in entries
        if entry.evidence_hash
    }
    for number in sorted({*range(1, evidence_count + 1), *named}):
        if number not in evidence_hashes:
            yield f"{model}: evidence {number} is missing"
        elif number in named and evidence_hashes[number] != named[number]:
            yield f"{model}: evidence {number} was changed after it was written"
