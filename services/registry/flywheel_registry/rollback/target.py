"""Chooses the release that a rollback returns to."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flywheel_registry.rollback.errors import NothingToRollBackTo
from flywheel_registry.serving.history import ServingSpan, rollback_stack


def rollback_target(
    spans: Sequence[ServingSpan], wanted: int | None = None, *, unusable: Collection[int] = ()
) -> int:
    """Return the release that served before the present one, or `wanted` if it ever served.

    Without `wanted`, the releases in `unusable` are passed over. `spans` are oldest first. Raises
    NothingToRollBackTo.
    """
    if not spans:
        raise NothingToRollBackTo("Nothing serves yet: promote a release first.")
    serving = spans[-1].release if spans[-1].until is None else None
    if wanted is not None:
        if wanted == serving:
            raise NothingToRollBackTo(f"Release {wanted} serves already: name another one.")
        if all(span.release != wanted for span in spans):
            served = (
                ", ".join(str(n) for n in sorted({span.release for span in spans if span.release != serving}))
                or "none"
            )
            raise NothingToRollBackTo(
                f"Release {wanted} never served; releases that served before: {served}."
            )
        return wanted
    stack = rollback_stack(spans)
    former = [n for n in (stack if serving is None else stack[:-1]) if n not in unusable]
    if not former:
        raise NothingToRollBackTo(
            "The first release that served serves, or all before it were rolled back, rejected or deleted: "
            "name one in to_release, or promote another."
        )
    return former[-1]
