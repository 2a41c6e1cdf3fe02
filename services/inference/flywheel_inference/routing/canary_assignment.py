"""TODO docstring."""

from __future__ import annotations

import hashlib

BUCKETS = 10_000


def bucket(salt: str, subject: str) -> int:
    """0 … 9999, uniform over subjects and independent between salts."""
    digest = hashlib.sha256(f"{salt}/{subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS
