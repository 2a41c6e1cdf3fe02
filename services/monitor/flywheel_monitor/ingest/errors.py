"""Errors about ingested events."""

from __future__ import annotations

from flywheel_common.errors import InvalidArgument


class MalformedBatch(InvalidArgument):
    """A prediction or outcome batch has wrong lengths, names or values, and goes to the dead-letter topic."""

    reason = "MALFORMED_BATCH"
    remedy = "Correct the producer, then publish the batch again."
