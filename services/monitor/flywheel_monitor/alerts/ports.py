"""The port of alerts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flywheel_common.paging import Page
from flywheel_common.webhooks.webhook import Webhook
from flywheel_monitor.alerts.alert import Alert
from flywheel_monitor.alerts.drift_event import DriftAnnouncement
from flywheel_monitor.alerts.filter import AlertFilter
from flywheel_monitor.alerts.lifecycle import Kind
from flywheel_monitor.alerts.silence import Silence
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.models.names import AlertName
from flywheel_monitor.references.version import WatchedVersion
from flywheel_monitor.windows.span import Span


class Alerts(Protocol):
    """Alerts. A (version, kind) has at most one unresolved alert. A caller that opens, confirms or ends
    one has read `unresolved` in the same transaction, while it holds the version's lock."""

    async def unresolved(self, version_id: int, kind: Kind) -> Alert | None: ...

    async def open_alert(
        self,
        alert_id: str,
        version: WatchedVersion,
        kind: Kind,
        span: Span,
        features: Sequence[FeatureDrift],
        reason: str,
    ) -> str:
        """Returns the name of the new alert."""
        ...

    async def confirm_alert(
        self, version_id: int, kind: Kind, span: Span, features: Sequence[FeatureDrift], reason: str
    ) -> None:
        """Replace the evidence by that of the window. The end of the newest confirming window never moves
        back."""
        ...

    async def end_alert(self, version_id: int, kind: Kind, reason: str) -> None:
        """Resolve the unresolved alert of this kind, if any."""
        ...

    async def retire_alerts(self, version_id: int, silent_since_us: int) -> None:
        """Resolve all alerts of the version if it has served fewer than SUPPORT of the stored predictions at
        or after this event time."""
        ...

    async def announce(self, drift: DriftAnnouncement) -> bool:
        """Publish `drift.detected` when the transaction commits, once per (version, kind, reference,
        window). False if it was published before."""
        ...

    async def alert(self, name: AlertName) -> Alert:
        """Raises UnknownAlert."""
        ...

    async def alerts(self, project: str, wanted: AlertFilter, size: int, token: str) -> Page[Alert]:
        """One page, newest first. Raises InvalidPageToken."""
        ...

    async def acknowledge_alert(self, name: AlertName, by: str) -> Alert:
        """A repeat keeps the first name. Raises UnknownAlert, AlertResolved."""
        ...

    async def resolve_alert(self, name: AlertName, reason: str) -> Alert:
        """Changes nothing if the alert is resolved. Raises UnknownAlert."""
        ...

    async def put_sink(self, sink: Webhook) -> None:
        """Store a sink; it replaces one of the same id. From then on it gets every change of an alert of its
        project that is not silenced, once, when the transaction of the change commits."""
        ...

    async def sinks(self, project: str) -> list[Webhook]:
        """The sinks of a project by id."""
        ...

    async def delete_sink(self, project: str, sink: str) -> None:
        """Delete a sink with what waits for it. Raises UnknownWebhook."""
        ...

    async def put_silence(self, silence: Silence) -> None:
        """Store a silence; it replaces one of the same model and kind."""
        ...

    async def silences(self, project: str) -> list[Silence]:
        """The silences that have not ended, by model and kind."""
        ...

    async def open_alerts(self) -> dict[tuple[str, str], int]:
        """(model, kind) → number of unresolved alerts."""
        ...
