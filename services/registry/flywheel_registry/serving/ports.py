"""The ports to stored routing, to gateway reports, and to notifications of routing changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from flywheel_registry.evidence.ports import EvidenceRecords
from flywheel_registry.releases.ports import ReleaseRecords
from flywheel_registry.serving.gateways import Gateway, ObservedModel
from flywheel_registry.serving.history import ServingSpan
from flywheel_registry.serving.routing import Routing


class ServingRecords(ReleaseRecords, EvidenceRecords, Protocol):
    """Routing and serving history, beside the releases and evidence of the same transaction."""

    async def routing(self, model: str) -> Routing:
        """Return the model's routing; the default one, generation 0, when it has never served."""
        ...

    async def set_routing(self, model: str, routing: Routing) -> None:
        """Store the routing; after the commit every replica is notified, also of an equal one."""
        ...

    async def spans(self, model: str) -> list[ServingSpan]:
        """Return the whole serving history, oldest first."""
        ...

    async def page_of_spans(self, model: str, before: int, limit: int) -> list[tuple[int, ServingSpan]]:
        """Return (position, span) pairs with a position below `before`, newest first."""
        ...

    async def begin_span(self, model: str, span: ServingSpan) -> None:
        """End the open span at `span.since` and add this one."""
        ...

    async def end_span(self, model: str, at: datetime) -> None:
        """End the open span: nothing serves any more."""
        ...

    async def span_at(self, model: str, at: datetime) -> ServingSpan | None:
        """Return the span that contains a time; None when nothing served then."""
        ...


class Gateways(Protocol):
    """The reports of gateways, shared by all replicas. One clock decides which gateways are live."""

    async def heartbeat(self, gateway: str, observed: Sequence[ObservedModel]) -> None:
        """Store the gateway's newest report."""
        ...

    async def set_project(self, gateway: str, project: str) -> None:
        """Store which project a gateway watches; empty for all. A crash of the database does not lose it."""
        ...

    async def remove(self, gateway: str) -> None:
        """Forget a gateway that has stopped serving. Nothing happens when it is not known."""
        ...

    async def recent(self, within_seconds: float, after: str = "", limit: int = 1000) -> list[Gateway]:
        """Return gateways with a heartbeat in the last `within_seconds`, by id, beginning after `after`."""
        ...

    def on_heartbeat(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after every heartbeat at this replica; return a function that ends this."""
        ...


class RoutingNotifications(Protocol):
    """Notifications of routing changes, for one listener."""

    async def next(self, timeout_seconds: float) -> set[str] | None:
        """Return the models whose routing changed since the last call; empty after the timeout.

        Returns None when notifications may have been lost, as with a new connection: the caller must then
        compare all generations. Raises Unavailable.
        """
        ...

    async def generations(self) -> dict[str, int]:
        """Return the stored generation of each model's routing. Raises Unavailable."""
        ...
