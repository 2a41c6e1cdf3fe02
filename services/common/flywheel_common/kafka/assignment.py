"""Which member of a group reads which partitions: a pure function that every member computes alike."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import TypeVar

P = TypeVar("P", bound="tuple[str, int]")


def assign(partitions: Collection[P], members: Collection[str], owners: Mapping[P, str]) -> dict[P, str]:
    """Partition → member; empty without members. `owners` says who reads a partition now.

    The shares of any two members differ by one partition at most. A partition stays with its owner unless the
    owner is gone or has more than its share, so that new partitions move no others. All other partitions go
    to the member of the highest rendezvous score that has room.
    """
    if not members:
        return {}
    held: dict[str, list[P]] = {m: [] for m in members}
    free: list[P] = []
    for partition in sorted(partitions):
        held.get(owners.get(partition, ""), free).append(partition)
    share, more = divmod(len(partitions), len(held))
    # Members that hold the most keep the larger shares: then the fewest partitions move.
    by_size = sorted(held, key=lambda m: (-len(held[m]), m))
    room = {m: share + (place < more) for place, m in enumerate(by_size)}
    assigned: dict[P, str] = {}
    for member, own in held.items():
        kept = sorted(own, key=lambda p: _score(member, p), reverse=True)
        free += kept[room[member] :]
        assigned.update(dict.fromkeys(kept[: room[member]], member))
        room[member] -= min(len(kept), room[member])
    for partition in sorted(free):
        member = max((m for m in room if room[m]), key=lambda m: _score(m, partition))
        room[member] -= 1
        assigned[partition] = member
    return assigned


def _score(member: str, partition: tuple[str, int]) -> bytes:
    """The rendezvous score: an order of members for each partition that is unrelated to their names."""
    return hashlib.blake2b(f"{member}/{partition[0]}/{partition[1]}".encode(), digest_size=8).digest()
