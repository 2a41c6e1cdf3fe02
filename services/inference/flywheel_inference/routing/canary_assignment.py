"""Canary assignment: which subjects the challenger of a rollout serves.

bucket = first 8 bytes, big-endian, of SHA-256(rollout + "/" + subject), modulo 10,000. A subject is in a
share of p percent when its bucket < p * 100. A subject that is in the share therefore stays in it while the
percentage grows. docs/architecture.md (Routing) documents this hash.
"""

from __future__ import annotations

import hashlib

BUCKETS = 10_000


def bucket(salt: str, subject: str) -> int:
    """0 … 9999, uniform over subjects and independent between salts. The salt is the name of the rollout."""
    digest = hashlib.sha256(f"{salt}/{subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


def in_share(subject_bucket: int, percent: float) -> bool:
    """Whether a bucket belongs to a share of `percent` percent of the subjects."""
    return subject_bucket < percent * (BUCKETS / 100)
