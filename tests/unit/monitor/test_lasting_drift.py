"""Alerts about features: each has to drift in k of m windows by itself."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from flywheel_common.clock import ManualClock
from flywheel_common.ids import SequentialIds
from flywheel_monitor.alerts.filter import AlertFilter
from flywheel_monitor.alerts.lifecycle import AlertState, Kind
from flywheel_monitor.drift.features import judge_window
from flywheel_monitor.drift.score_shift import ScoreShift
from flywheel_monitor.drift.statistics import FeatureDrift
from flywheel_monitor.drift.verdict import Verdict
from flywheel_monitor.evaluation.alerting import update_alert
from flywheel_monitor.evaluation.report import Report
from flywheel_monitor.evaluation.verdicts import verdicts
from flywheel_monitor.fakes.references import MemoryReferences
from flywheel_monitor.fakes.store import MemoryStore
from flywheel_monitor.models.policy import MonitorPolicy
from flywheel_monitor.performance.quality import Quality
from tests.support.builders.monitor import PANE_US, hour, predictions, version_name

D, W, Q = Verdict.DRIFT, Verdict.WARNING, Verdict.DATA_QUALITY
POLICY = MonitorPolicy(k_of=2, m_windows=3)
NAMES = "abcd"


class Windows:
    """Windows of one version whose features have given verdicts, and the alerts that follow."""

    def __init__(self) -> None:
        self.store = MemoryStore(MemoryReferences(), PANE_US, ManualClock())
        self._ids = SequentialIds("alert")

    async def judge(
        self, number: int, drifted: Mapping[str, Verdict], score: Verdict = Verdict.NO_DRIFT
    ) -> None:
        features = tuple(
            FeatureDrift(name, verdict=drifted.get(name, Verdict.NO_DRIFT), reason=f"why {name}")
            for name in NAMES
        )
        verdict, reason = judge_window(features, 1000, POLICY)
        scores = ScoreShift(verdict=score, reason="scores")
        report = Report("", hour(number), 1000, features, scores, verdict, reason, "", Quality())
        async with self.store.transaction() as records:
            version = await records.version(version_name())
            if version is None:
                await records.add_predictions(0, [predictions(["one"])])
                version = await records.version(version_name())
            assert version is not None
            await records.put_report(version.id, report)
            kinds = (Kind.DATA_DRIFT, Kind.DATA_QUALITY, Kind.PREDICTION_DRIFT)
            for kind, found in verdicts(report, version, POLICY, kinds).items():
                before = await records.verdict(version.id, kind, report.span)
                await records.put_verdict(version.id, kind, found)
                await update_alert(records, self._ids, version, kind, report, POLICY, before)

    async def alerts(self, kind: Kind = Kind.DATA_DRIFT) -> list[tuple[AlertState, str]]:
        """(state, features), newest first."""
        async with self.store.reading() as records:
            page = await records.alerts("p", AlertFilter(), 99, "")
        return [(a.state, "".join(f.feature for f in a.features)) for a in page.items if a.kind == kind]

    async def reason(self) -> str:
        async with self.store.reading() as records:
            return (await records.alerts("p", AlertFilter(), 1, "")).items[0].reason


@pytest.fixture
def windows() -> Windows:
    return Windows()


async def test_features_that_drift_by_turns_open_no_alert(windows: Windows) -> None:
    for number, name in enumerate("abcdabcd"):
        await windows.judge(number, {name: D})
    assert [] == await windows.alerts()


@pytest.mark.parametrize("verdict", [D, W])
async def test_an_alert_shows_the_features_that_last(windows: Windows, verdict: Verdict) -> None:
    await windows.judge(0, {"a": verdict, "b": verdict})
    await windows.judge(1, {"a": verdict, "c": verdict})
    assert [(AlertState.OPEN, "a")] == await windows.alerts()
    assert (await windows.reason()).startswith("a over several windows; the newest one: ")
    await windows.judge(2, {"a": verdict, "c": verdict})
    assert [(AlertState.OPEN, "ac")] == await windows.alerts()


async def test_another_feature_does_not_keep_an_alert_open(windows: Windows) -> None:
    for number, name in enumerate("aabcd"):
        await windows.judge(number, {name: D})
        if number == 3:
            assert [(AlertState.OPEN, "a")] == await windows.alerts()
    assert [(AlertState.RESOLVED, "a")] == await windows.alerts()
    assert [hour(1)] == [a.span for a in windows.store.announced]


async def test_one_window_more_confirms_what_the_alert_shows(windows: Windows) -> None:
    for number, name in enumerate("aabba"):
        await windows.judge(number, {name: D})
        if number == 3:
            assert [(AlertState.OPEN, "b")] == await windows.alerts(), "b lasts, a does not"
    assert [(AlertState.OPEN, "b")] == await windows.alerts(), "a alone does not last"


async def test_features_with_bad_data_by_turns_open_no_alert(windows: Windows) -> None:
    for number, name in enumerate("abcd"):
        await windows.judge(number, {name: Q})
    assert [] == await windows.alerts(Kind.DATA_QUALITY)
    await windows.judge(4, {"d": Q, "a": D})
    assert [(AlertState.OPEN, "d")] == await windows.alerts(Kind.DATA_QUALITY)
    assert [] == await windows.alerts()


async def test_a_late_correction_of_one_feature_retracts_its_alert_alone(windows: Windows) -> None:
    await windows.judge(0, {"a": D, "b": W})
    await windows.judge(1, {"a": D})
    await windows.judge(0, {"b": W})
    assert [(AlertState.RESOLVED, "a")] == await windows.alerts()


async def test_a_column_that_is_dead_for_good_does_not_hide_a_new_one(windows: Windows) -> None:
    """The scores drift: with one dead column this is news from the third window on, with a second one not."""
    for number in range(4):
        await windows.judge(number, {"a": Q}, D)
    causes = {
        a.span.start_us: a.data_quality_cause
        for a in windows.store.announced
        if a.kind == Kind.PREDICTION_DRIFT
    }
    assert [True, False, False] == [causes[hour(n).start_us] for n in (1, 2, 3)]
    await windows.judge(4, {"a": Q, "b": Q}, D)
    newest = next(a for a in windows.store.announced if (a.kind, a.span) == (Kind.PREDICTION_DRIFT, hour(4)))
    assert newest.data_quality_cause


async def test_scores_need_no_feature_to_last(windows: Windows) -> None:
    await windows.judge(0, {"a": D}, D)
    await windows.judge(1, {"b": D}, D)
    assert [(AlertState.OPEN, "b")] == await windows.alerts(Kind.PREDICTION_DRIFT)
    await windows.judge(2, {})
    await windows.judge(3, {})
    await windows.judge(4, {})
    assert [(AlertState.RESOLVED, "b")] == await windows.alerts(Kind.PREDICTION_DRIFT)
