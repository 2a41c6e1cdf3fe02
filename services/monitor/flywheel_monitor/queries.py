"""What is read on demand: a version's drift and performance, two variants side by side, how far the stream is."""

from __future__ import annotations

from dataclasses import dataclass

from flywheel_common.errors import InvalidArgument, NotFound
from flywheel_monitor.batches import Role
from flywheel_monitor.comparison import Comparison, compare
from flywheel_monitor.evaluation import Report, report_on
from flywheel_monitor.layout import latency_quantile
from flywheel_monitor.performance import Quality
from flywheel_monitor.policy import MonitorPolicy
from flywheel_monitor.ports import Records, Store
from flywheel_monitor.references import WatchedVersion
from flywheel_monitor.resource_names import ModelName, RolloutName, VersionName
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
    """Read only. Panes are `pane_us` wide."""

    def __init__(self, store: Store, pane_us: int) -> None:
        self._store = store
        self._pane_us = pane_us

    async def policy(self, model: str) -> MonitorPolicy:
        """Raises NotFound UNKNOWN_MODEL."""
        async with self._store.reading() as records:
            return await _policy(records, model)

    async def drift(self, name: str, start_us: int | None, end_us: int | None, segment: str) -> Report:
        """Drift of a range, or of the newest judged window. A range is widened to whole panes. Raises NotFound UNKNOWN_MODEL,
        NO_PREDICTIONS, NO_REFERENCE."""
        async with self._store.reading() as records:
            version = await _find(records, name)
            if not version.reference.columns:
                raise NotFound(
                    f"{version.name} has no reference to compare with: {version.reference.reason}.",
                    reason="NO_REFERENCE",
                )
            policy = await _policy(records, version.model)
            if start_us is None and end_us is None:
                newest = await records.newest_report(version.id)
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
            window = await records.window(version, span, segment)
            quality = await records.quality(version.id, span, window, segment)
        if window.predictions == 0:
            raise NotFound(f"{version.name} answered nobody in this range.", reason="NO_PREDICTIONS")
        return report_on(version, span, window, quality, policy)

    async def performance(
        self, name: str, start_us: int | None, end_us: int | None, segment: str
    ) -> ServedPerformance:
        """Raises NotFound NO_PREDICTIONS for a version that never answered."""
        VersionName.parse(name)
        span = self._span(start_us, end_us)
        async with self._store.reading() as records:
            version = await _find(records, name)
            window = await records.window(version, span, segment)
            quality = await records.quality(version.id, span, window, segment)
            first, last = await records.event_range(version.id, span, segment)
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
        async with self._store.reading() as records:
            ours = await records.variant_rows(
                rollout, challenger, Role.SHADOW if shadow else Role.CHALLENGER, since
            )
            theirs = await records.variant_rows(rollout, champion, Role.CHAMPION, since)
        times = [int(f(r.event_times)) for r in (ours, theirs) if len(r.event_times) for f in (min, max)]
        found = compare(theirs, ours, is_paired=shadow, alpha=alpha)
        return VariantComparison(found, min(times, default=None), max(times, default=None))

    def _span(self, start_us: int | None, end_us: int | None) -> Span:
        start = EVER.start_us if start_us is None else start_us // self._pane_us * self._pane_us
        end = EVER.end_us if end_us is None else -(-end_us // self._pane_us) * self._pane_us
        if end <= start:
            raise InvalidArgument("end_time must be later than start_time.", reason="INVALID_TIME_RANGE")
        return Span(start, end)


async def _policy(records: Records, model: str) -> MonitorPolicy:
    found = await records.policy(model)
    if found is None:
        raise NotFound(
            f"Model {model} was never seen here: set a policy, or let it answer.",
            reason="UNKNOWN_MODEL",
            model=model,
        )
    return found


async def _find(records: Records, name: str) -> WatchedVersion:
    """The version of this name, or the champion of the model of this name."""
    if ModelName.match(name) is not None:
        await _policy(records, name)
        champion = await records.champion(name)
        if champion is None:
            raise NotFound(f"Model {name} has not answered yet.", reason="NO_PREDICTIONS", model=name)
        name = champion
    VersionName.parse(name)
    version = await records.version(name)
    if version is None:
        raise NotFound(f"{name} has not answered yet.", reason="NO_PREDICTIONS", model_version=name)
    return version
