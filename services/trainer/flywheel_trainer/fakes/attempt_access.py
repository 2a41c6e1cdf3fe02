"""`AttemptAccess` and `Signer` in memory."""

from __future__ import annotations

from flywheel_common.granted.access import Access, ObjectRequest, SignedRequest, split_uri
from flywheel_common.granted.errors import AttemptEnded
from flywheel_trainer.fakes.tracking import MemoryTracking


class MemoryAttemptAccess:
    """`AttemptAccess` over a `MemoryTracking`."""

    def __init__(self, tracking: MemoryTracking) -> None:
        self._tracking = tracking

    async def access_of(self, attempt: str) -> Access:
        active = {a.attempt.engine_id for a in self._tracking.jobs.values() if a.attempt is not None}
        if attempt not in active or attempt not in self._tracking.access:
            raise AttemptEnded.of(attempt)
        return self._tracking.access[attempt]


class MemorySigner:
    """A `Signer` whose requests name what they permit; no store accepts them."""

    async def sign(self, request: ObjectRequest, lifetime_seconds: int) -> SignedRequest:
        bucket, key = split_uri(request.uri)
        url = f"memory://{bucket}/{key}?method={request.method}&seconds={lifetime_seconds}"
        return SignedRequest("GET", url, {"x-digest": request.sha256} if request.sha256 else {})
