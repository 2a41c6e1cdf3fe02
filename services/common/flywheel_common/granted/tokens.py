"""Tokens of attempts, executions of jobs on a cluster: they end with the attempt.

A token is the name of the attempt on the cluster (its engine id) and its HMAC under a secret of the
installation, so nothing is stored per token. Whether the attempt is still active is checked by each of these
calls.
"""

from __future__ import annotations

import hashlib
import hmac
import re

ATTEMPT = frozenset({"attempt"})
"""The role of an attempt, which permits calls about its own job."""
PREFIX = "fwattempt"
_TOKEN = re.compile(rf"{PREFIX}\.([A-Za-z0-9_-]+)\.([0-9a-f]{{64}})")


class AttemptTokens:
    """Issues and verifies the tokens of attempts."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 32:
            raise ValueError("the secret has fewer than 32 bytes")
        self._secret = secret

    def issue(self, engine_id: str) -> str:
        return f"{PREFIX}.{engine_id}.{self._mac(engine_id)}"

    def verify(self, token: str) -> str | None:
        """The engine id of the attempt, or None if this is no valid token of an attempt."""
        match = _TOKEN.fullmatch(token)
        if match is None or not hmac.compare_digest(self._mac(match[1]), match[2]):
            return None
        return match[1]

    def _mac(self, engine_id: str) -> str:
        return hmac.new(self._secret, engine_id.encode(), hashlib.sha256).hexdigest()
