"""What is read on demand: a version's drift and performance, two variants side by side, how far the stream is."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_common.errors import InvalidArgument, NotFound
from flywheel_common.postgres import Pool, connection
from flywheel_monitor.batches import Role
from flywheel_monitor.comparison import Comparison, compare
from flywheel_monitor.evaluation import Report, report_on
from flywheel_monitor.layout import Window, latency_quantile
from flywheel_monitor.performance import Quality
from flywheel_monitor.references import WatchedVersion
from flywheel_monitor.resource_names import ModelName, RolloutName, VersionName
from flywheel_monitor.store.evaluations import Evaluations
from flywheel_monitor.store.pane_rows import read_window
from flywheel_monitor.store.prediction_rows import PredictionRows
from flywheel_monitor.store.versions import Versions
from flywheel_monitor.windows import Span

EVER = Span(-(2**61), 2**61)


@dataclass(frozen=True)
class ServedPerformance:
    """See `Performance` of the API."""

    model_version: str
    predictions: int
    quality: Quality
    score_mean: float
    latency_p50_ms: float
    latency_p99_ms: float
    error_rate: float
    fallback_rate: float
    first_event_us: int | None
    last_event_us: int | None


@dataclass(frozen=True)
class VariantComparison:
    """`first_event_us` and `last_event_us` are None without predictions."""

    comparison: Comparison
    first_event_us: int | None
    last_event_us: int | None


class Queries:
    """Read only."""

    def __init__(
        self, pool: Pool, versions: Versions, evaluations: Evaluations, rows: PredictionRows, pane_us: int
    ) -> None:
        self._pool = pool
        self._versions = versions
        self._evaluations = evaluations
        self._rows = rows
        self._pane_us = pane_us

    async def drift(self, name: str, start_us: int | None, end_us: int | None, segment: str) -> Report:
        """Drift of a range, or of the newest judged window. A range is widened to whole panes. Raises NotFound UNKNOWN_MODEL,
        NO_PREDICTIONS, NO_REFERENCE."""
        version = await self._find(name)
        if not version.reference.columns:
            raise NotFound(
                f"{version.name} has no reference to compare with: {version.reference.reason}.",
                reason="NO_REFERENCE",
            )
        policy = await self._versions.policy(version.model)
        assert policy is not None
        if start_us is None and end_us is None:
            newest = await self._evaluations.newest_report(version.id)
            if newest is None:
                raise NotFound(
                    f"No window of {version.name} is closed yet: give start_time and end_time, or wait.",
                    reason="NO_PREDICTIONS",
                )
            if not segment:
                return newest
            span = newest.span
        else:
            span = self._span(start_us, end_us)
        window, quality = await self._window(version, span, segment)
        if window.predictions == 0:
            raise NotFound(f"{version.name} answered nobody in this range.", reason="NO_PREDICTIONS")
        return report_on(version, span, window, quality, policy)

    async def performance(
        self, name: str, start_us: int | None, end_us: int | None, segment: str
    ) -> ServedPerformance:
        """Raises NotFound NO_PREDICTIONS for a version that never answered."""
        VersionName.parse(name)
        version = await self._find(name)
        span = self._span(start_us, end_us)
        window, quality = await self._window(version, span, segment)
        first, last = await self._rows.event_range(version.id, span, segment)
        n = max(1, window.predictions)
        sources = window.sources
        return ServedPerformance(
            model_version=version.name,
            predictions=window.predictions,
            quality=quality,
            score_mean=window.score_moments()[0],
            latency_p50_ms=latency_quantile(window.latencies, 0.5),
            latency_p99_ms=latency_quantile(window.latencies, 0.99),
            error_rate=int(sources[4]) / n,
            fallback_rate=int(sources[2] + sources[3]) / n,
            first_event_us=first,
            last_event_us=last,
        )

    async def compare(
        self,
        rollout: str,
        champion: str,
        challenger: str,
        *,
        shadow: bool,
        start_us: int | None,
        alpha: float,
    ) -> VariantComparison:
        """Both variants of a rollout since `start_us`."""
        RolloutName.parse(rollout)
        alpha = alpha or 0.05
        if not 0 < alpha < 1:
            raise InvalidArgument(
                "alpha must lie between 0 and 1; 0 means 0.05.", reason="INVALID_ALPHA", field="alpha"
            )
        if not champion or not challenger or champion == challenger:
            raise InvalidArgument("Give two different releases to compare.", reason="INVALID_RELEASES")
        since = EVER.start_us if start_us is None else start_us
        ours = await self._rows.variant(
            rollout, challenger, Role.SHADOW if shadow else Role.CHALLENGER, since
        )
        theirs = await self._rows.variant(rollout, champion, Role.CHAMPION, since)
        times = [int(f(r.event_times)) for r in (ours, theirs) if len(r.event_times) for f in (min, max)]
        found = compare(theirs, ours, is_paired=shadow, alpha=alpha)
        return VariantComparison(found, min(times, default=None), max(times, default=None))

    async def _find(self, name: str) -> WatchedVersion:
        if ModelName.match(name) is not None:
            if await self._versions.policy(name) is None:
                raise NotFound(f"Model {name} was never seen here.", reason="UNKNOWN_MODEL", model=name)
            version_name = await self._versions.champion(name)
            if version_name is None:
                raise NotFound(f"Model {name} has not answered yet.", reason="NO_PREDICTIONS", model=name)
            name = version_name
        VersionName.parse(name)
        version = await self._versions.version(name)
        if version is None:
            raise NotFound(f"{name} has not answered yet.", reason="NO_PREDICTIONS", model_version=name)
        return await self._versions.version_by_id(version.id, fresh=True)

    async def _window(self, version: WatchedVersion, span: Span, segment: str) -> tuple[Window, Quality]:
        async with connection(self._pool) as conn:
            window = await read_window(
                conn, version.id, version.layout, span.start_us, span.end_us, segment=segment
            )
            return window, await self._evaluations.quality(conn, version.id, span, window, segment)

    def _span(self, start_us: int | None, end_us: int | None) -> Span:
        start = EVER.start_us if start_us is None else start_us // self._pane_us * self._pane_us
        end = EVER.end_us if end_us is None else -(-end_us // self._pane_us) * self._pane_us
        if end <= start:
            raise InvalidArgument("end_time must be later than start_time.", reason="INVALID_TIME_RANGE")
        return Span(start, end)
