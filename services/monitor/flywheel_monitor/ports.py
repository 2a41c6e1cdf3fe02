"""What the use cases need from the store and the broker. Each docstring is the law that every implementation must keep.

Times are event time in microseconds. A version is known by its number in the store (`version_id`) once it has answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from flywheel_common.paging import Page
from flywheel_common.postgres import transactions
from flywheel_monitor.alert import Alert, AlertFilter, Announcement
from flywheel_monitor.alerts import Kind
from flywheel_monitor.batches import IngestCounts, OutcomeColumns, PredictionColumns, Role, Segment, Waiting
from flywheel_monitor.comparison import VariantRows
from flywheel_monitor.drift import FeatureDrift, Verdict
from flywheel_monitor.evaluation import Judged, Report
from flywheel_monitor.lag import Lag
from flywheel_monitor.layout import Window
from flywheel_monitor.performance import Quality
from flywheel_monitor.policy import MonitorPolicy
from flywheel_monitor.references import WatchedVersion
from flywheel_monitor.resource_names import AlertName
from flywheel_monitor.score_shift import ScoreReference
from flywheel_monitor.windows import Frontier, Newest, Span


class Policies(Protocol):
    """How models are watched. A model is known once a policy was set for it or a batch named it; one without a policy of its
    own has the default one."""

    async def set_policy(self, model: str, policy: MonitorPolicy) -> None:
        """Replaces: the newest wins."""
        ...

    async def policy(self, model: str) -> MonitorPolicy | None:
        """None for a model that is not known."""
        ...

    async def policies(self) -> list[tuple[int, str, MonitorPolicy]]:
        """(id, name, policy) of every model."""
        ...


class Versions(Protocol):
    """Model versions that have answered. What one is compared with is asked for before its first answer counts, and never
    changes: its answers are counted in the reference's bins."""

    async def version(self, name: str) -> WatchedVersion | None: ...

    async def champion(self, model: str) -> str | None:
        """The version whose newest answer as champion is the newest of all."""
        ...

    async def set_first_window(self, version_id: int, reference: ScoreReference) -> None:
        """Keeps the scores of the first window served; what was kept first stays."""
        ...


class Ingestion(Protocol):
    """Where answers and outcomes are counted, each once, whatever comes again and in whatever order.

    One writer at a time works on a partition, and an answer and its outcomes are in the same one. An answer is known by
    (prediction id, shadow or served): the first one stays, later ones are duplicates. It counts in the pane of its event
    time, in segment "" and in its own. The label of a prediction is its outcome named `label` with the newest (event time,
    outcome id); it counts in the pane of the prediction, for the served answer and for its shadow, when it comes before
    them too: until then it is an orphan. Other outcomes are known by their id. Counts, labels, progress and the queue
    of the archive change together, in the transaction. Raises a retryable FlywheelError, and counts nothing, while the
    reference of a new version cannot be had."""

    async def add_predictions(self, partition: int, batches: Sequence[PredictionColumns]) -> None: ...

    async def add_outcomes(self, partition: int, batches: Sequence[OutcomeColumns]) -> None: ...


class Answers(Protocol):
    """What was counted, read. Windows are sums over whole panes and exact: the same answers and labels give the same window
    in whatever order and parts they came, and it outlives the single answers, which are forgotten after their time."""

    async def window(self, version: WatchedVersion, span: Span, segment: str = "") -> Window:
        """The served answers whose panes begin in the span."""
        ...

    async def quality(self, version_id: int, span: Span, window: Window, segment: str = "") -> Quality:
        """Of the window's labelled answers, from its counts; the AUC from the single answers while all of them are kept."""
        ...

    async def variant_rows(self, rollout: str, release: str, role: Role, since_us: int) -> VariantRows:
        """The kept answers of one variant of a rollout with event time >= `since_us`, with the labels that have come."""
        ...

    async def event_range(self, version_id: int, span: Span, segment: str) -> tuple[int | None, int | None]:
        """Event time of the first and last kept answer that was served."""
        ...

    async def counts(self, project: str) -> IngestCounts: ...

    async def newest(self, project: str) -> int | None:
        """Newest event time of an answer."""
        ...

    async def prune(self, keep_us: int) -> int:
        """Forgets some answers (and their labels) more than `keep_us` behind their model's newest; answers how many."""
        ...


class ArchiveQueue(Protocol):
    """Prediction batches on their way to the archive, put there by the transaction that counted them, with a bitmap of the rows
    that were new (`batches.pack_kept`); a batch without any is not there. A segment is cut before its objects are written, and
    completed after: what comes in between may be repeated and finds the same batches. One replica at a time works here."""

    async def waiting(self) -> list[Waiting]:
        """What is in no segment yet, per model."""
        ...

    async def cut_segment(self, model: str, at_least: int) -> None:
        """Puts the batches that have waited longest into a segment, until it has so many rows or none is left."""
        ...

    async def pending_segments(self) -> list[Segment]:
        """Those that are not completed, oldest first."""
        ...

    async def segment_batches(self, segment: int) -> list[tuple[bytes, bytes]]:
        """(payload, bitmap) in the order in which they came."""
        ...

    async def complete_segment(
        self, segment: int, objects: Sequence[str], rows: int, last_event_us: int
    ) -> None:
        """The segment is archived under these keys; its batches are forgotten."""
        ...

    async def archived(self, model: str) -> tuple[int, int | None]:
        """(rows in completed segments, newest event time among them)."""
        ...


class Reports(Protocol):
    """Windows that are due, what was found in them, and how far that has got."""

    async def read_up_to(self) -> Newest: ...

    async def frontiers(self) -> list[Frontier]:
        """Of every version."""
        ...

    async def windows(self, version_id: int, start_us: int, end_us: int, window_us: int) -> list[Span]:
        """Windows that begin in [start, end) and served anybody, oldest first."""
        ...

    async def lock(self, version_id: int) -> WatchedVersion:
        """The version, kept from every other transaction that locks it until this one ends."""
        ...

    async def put_report(self, version_id: int, report: Report) -> None:
        """Replaces the report on the same window."""
        ...

    async def put_verdict(
        self, version_id: int, kind: Kind, span: Span, verdict: Verdict, reason: str
    ) -> None:
        """Replaces the verdict of this kind on the same window."""
        ...

    async def recent(self, version_id: int, kind: Kind, limit: int) -> list[Judged]:
        """Newest window first, without those that had too few rows."""
        ...

    async def close(self, version_id: int, until_us: int, *, labels: bool) -> None:
        """Windows that end at or before this are done (`labels`: with their labels). A frontier never moves back."""
        ...

    async def newest_report(self, version_id: int) -> Report | None:
        """On the newest window that served anybody."""
        ...

    async def evaluated(self, project: str) -> int:
        """Windows with a report."""
        ...


class Alerts(Protocol):
    """Alerts, of which a (version, kind) has at most one that is not resolved. Whoever opens, confirms or ends one has seen it
    as `unresolved` in this transaction, under the version's lock."""

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
        """The new alert's name."""
        ...

    async def confirm_alert(
        self, version_id: int, kind: Kind, span: Span, features: Sequence[FeatureDrift], reason: str
    ) -> None:
        """The window's evidence replaces the former; the end of the newest confirming window never moves back."""
        ...

    async def end_alert(self, version_id: int, kind: Kind, reason: str) -> None: ...

    async def retire_alerts(self, version_id: int, silent_since_us: int) -> None:
        """Resolves the alerts of a version that served nobody since."""
        ...

    async def announce(self, drift: Announcement) -> bool:
        """Lets `drift.detected` go out if the transaction commits, once per (version, kind, reference, window); False when it
        had gone out before."""
        ...

    async def alert(self, name: AlertName) -> Alert:
        """Raises NotFound UNKNOWN_ALERT."""
        ...

    async def alerts(self, project: str, wanted: AlertFilter, size: int, token: str) -> Page[Alert]:
        """Newest first. Raises InvalidArgument INVALID_PAGE_TOKEN."""
        ...

    async def acknowledge_alert(self, name: AlertName, by: str) -> Alert:
        """Repeating it keeps the first name. Raises NotFound UNKNOWN_ALERT, FailedPrecondition ALERT_RESOLVED."""
        ...

    async def resolve_alert(self, name: AlertName, reason: str) -> Alert:
        """Resolving a resolved alert changes nothing. Raises NotFound UNKNOWN_ALERT."""
        ...

    async def open_alerts(self) -> dict[tuple[str, str], int]:
        """(model, kind) → alerts that are not resolved."""
        ...


class Records(Policies, Versions, Ingestion, Answers, ArchiveQueue, Reports, Alerts, Protocol):
    """The monitor's rows as one transaction sees them: what changes through one `Records` commits together or not at all."""


Store: TypeAlias = transactions.Store[Records]


class ConsumerLag(Protocol):
    """What waits at the broker for the group that counts answers and outcomes.

    A partition without a position waits whole, from the first record that the broker still holds: one that nobody has
    claimed, and one that was claimed and has committed nothing. What is committed as processed waits no more, nor does what
    the broker dropped unread. A partition is never told to hold less than at any moment while it was asked: a record that
    is written meanwhile counts as lag, never as read, for windows are closed by this. May be asked by several at once."""

    @property
    def last(self) -> Lag:
        """What the last successful `read` answered; an empty one before it."""
        ...

    async def read(self) -> Lag:
        """Asks now. Raises Unavailable KAFKA_UNAVAILABLE while the broker does not answer, before the running call's deadline
        where it has one, or does not name a partition that has been claimed, and POSTGRES_UNAVAILABLE while the positions
        cannot be had; `last` then stays."""
        ...
