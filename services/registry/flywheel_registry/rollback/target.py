"""Chooses the release that a rollback returns to."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from flywheel_registry.rollback.errors import NothingToRollBackTo
from flywheel_registry.serving.history import ServingSpan, rollback_stack


def rollback_target(
    spans: Sequence[ServingSpan], wanted: int | None = None, *, rejected: Collection[int] = ()
) -> int:
    """Return the release that served before the present one, or `wanted` if it ever served.

    Without `wanted`, releases of the versions in `rejected` are passed over. `spans` are oldest first. Raises
    NothingToRollBackTo.
    """
    if not spans:
        raise NothingToRollBackTo("Nothing serves yet: promote a release first.")
    serving = spans[-1].release
    if wanted is not None:
        if wanted == serving:
            raise NothingToRollBackTo(f"Release {wanted} serves already: name another one.")
        if all(span.release != wanted for span in spans):
            served = ", ".join(str(n) for n in sorted({span.release for span in spans} - {serving})) or "none"
            raise NothingToRollBackTo(
                f"Release {wanted} never served; releases that served before: {served}."
            )
        return wanted
    version_of = {span.release: span.version for span in spans}
    former = [n for n in rollback_stack(spans)[:-1] if version_of[n] not in rejected]
    if not former:
        raise NothingToRollBackTo(
            f"Release {serving} is the first that served, or all before it were rolled back or rejected: "
            "name one in to_release, or promote another."
        )
    return former[-1]
