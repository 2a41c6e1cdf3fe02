"""What an experiment counts, and its verdict."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from flywheel_monitor.experiments.errors import InvalidExperiment
from flywheel_monitor.experiments.experiment import Arm, Declaration, ExperimentVerdict
from flywheel_monitor.experiments.metric import COST, COUNT, FAILURES, LATENCY, Metric, MetricKind, MetricRole
from flywheel_monitor.experiments.report import DAY_US, judge
from flywheel_monitor.experiments.tally import BOTH, Subject, SubjectEvent, Tally, count
from flywheel_monitor.models.names import ExperimentName
from tests.support.builders.monitor import MODEL, START_US

NAME = ExperimentName.parse(f"{MODEL}/experiments/price")
ROLLOUT = f"{MODEL}/rollouts/1"
RELEASES = f"{MODEL}/releases/1", f"{MODEL}/releases/2"
PRIMARY, SECONDARY, GUARDRAIL = MetricRole.PRIMARY, MetricRole.SECONDARY, MetricRole.GUARDRAIL
CONVERSION = Metric("conversion", PRIMARY, MetricKind.PROPORTION, "buy")
REVENUE = Metric("revenue", SECONDARY, MetricKind.MEAN, "revenue")
CTR = Metric("ctr", SECONDARY, MetricKind.RATIO, "click", COUNT)
ERRORS = Metric("errors", GUARDRAIL, MetricKind.RATIO, FAILURES, COUNT, lower_is_better=True, max_loss=0.02)
P99 = Metric(
    "p99", GUARDRAIL, MetricKind.QUANTILE, LATENCY, lower_is_better=True, max_loss=0.5, relative=True
)
DECLARED = Declaration(
    Arm(ROLLOUT, RELEASES[0]), Arm(ROLLOUT, RELEASES[1]), (CONVERSION, REVENUE, CTR, ERRORS, P99), weeks=1
)
ARRIVED = datetime(2026, 1, 1, tzinfo=UTC)


def event(subject: str, arm: int, name: str = COUNT, value: float = 1.0, **fields: object) -> SubjectEvent:
    made = SubjectEvent(MODEL, ROLLOUT, RELEASES[arm], 4, subject, START_US, ARRIVED, name, value)
    return replace(made, **fields)  # type: ignore[arg-type]


def counted(
    *events: SubjectEvent, declaration: Declaration = DECLARED, parts: int = 1
) -> tuple[Tally, dict[str, Subject]]:
    """The tally after events that arrived in `parts` transactions."""
    tally, subjects = Tally.empty(len(declaration.metrics)), {}
    for part in np.array_split(np.arange(len(events)), parts):
        count(declaration, tally, subjects, [events[i] for i in part])
    return tally, subjects


def traffic(
    n: int,
    *,
    rates: tuple[float, float] = (0.1, 0.1),
    failures: tuple[float, float] = (0.0, 0.0),
    days: float = 8.0,
    latencies: tuple[float, float] = (10.0, 10.0),
) -> list[SubjectEvent]:
    """n subjects with two predictions and maybe a purchase, half of them in each arm."""
    rng = np.random.default_rng(21)
    found = []
    for i in range(n):
        arm, at = i % 2, START_US + int(i / n * days * DAY_US)
        for _ in range(2):
            failed = bool(rng.uniform() < failures[arm])
            latency = latencies[arm] * rng.uniform(0.5, 1.0)
            found.append(event(f"s{i}", arm, event_time=at, failed=failed, latency_ms=latency))
        if rng.uniform() < rates[arm]:
            found.append(event(f"s{i}", arm, "buy"))
    return found


@pytest.mark.parametrize("parts", [1, 7, 400])
def test_sums_over_subjects_do_not_depend_on_the_transactions(parts: int) -> None:
    rng = np.random.default_rng(4)
    truth: dict[int, dict[str, dict[str, float]]] = {0: {}, 1: {}}
    events = []
    for _ in range(600):
        arm, subject = (number := int(rng.integers(40))) % 2, f"s{number}"
        mine = truth[arm].setdefault(
            subject, dict.fromkeys((COUNT, FAILURES, "buy", "revenue", "click"), 0.0)
        )
        failed = bool(rng.uniform() < 0.2)
        events.append(event(subject, arm, failed=failed))
        mine[COUNT] += 1
        mine[FAILURES] += failed
        for name, value in (("buy", 1.0), ("revenue", 2.5), ("click", 1.0), ("unknown", 9.0)):
            if rng.uniform() < 0.3:
                events.append(event(subject, arm, name, value))
                mine[name] = mine.get(name, 0) + value
    tally, _ = counted(*events, parts=parts)
    for number, arm in enumerate(tally.arms):
        mine = truth[number].values()
        buy, revenue, click, errors, _ = (sums.over(arm.subjects) for sums in arm.sums)
        assert (len(mine), sum(s[COUNT] for s in mine)) == (arm.subjects, arm.predictions)
        assert sum(s["buy"] > 0 for s in mine) == buy.m == buy.mm
        amounts = [s["revenue"] for s in mine]
        assert (sum(amounts), sum(x * x for x in amounts)) == (revenue.m, revenue.mm)
        assert sum(s["click"] * s[COUNT] for s in mine) == click.md
        assert sum(s[FAILURES] for s in mine) == errors.m and sum(s[COUNT] ** 2 for s in mine) == errors.dd


def test_a_subject_of_both_arms_counts_in_neither() -> None:
    events = [event("a", 0), event("a", 0, "buy"), event("b", 1), event("a", 1), event("a", 1, "buy")]
    for parts in (1, 2, 5):
        tally, subjects = counted(*events, parts=parts)
        assert (0, 1, 1) == (tally.arms[0].subjects, tally.arms[1].subjects, tally.crossed)
        assert (0, BOTH) == (tally.arms[0].sums[0].m, subjects["a"].arm)


def test_what_belongs_to_no_arm_is_not_counted() -> None:
    other = [
        event("a", 0, source=f"{MODEL}/rollouts/2"),
        event("b", 0, release=f"{MODEL}/releases/3"),
        event("c", 0, generation=5),
        event("late", 0, "buy"),
    ]
    tally, subjects = counted(*other, declaration=replace(DECLARED, generation=4))
    assert ({}, 0, 0) == (subjects, tally.arms[0].subjects, tally.arms[0].predictions)


def test_an_amount_without_bounds_is_left_out() -> None:
    tally, _ = counted(event("a", 0), event("a", 0, "revenue", 1e300), event("a", 0, "revenue", 3.0))
    assert (1, 3.0) == (tally.unusable, tally.arms[0].sums[1].over(1).m)


def test_a_tally_is_stored_exactly() -> None:
    tally, _ = counted(*traffic(50), event("a", 0), event("a", 0, "revenue", 2.0**40 / 3))
    assert vars(tally) == vars(Tally.from_json(tally.to_json()))
    assert DECLARED == Declaration.from_json(DECLARED.to_json())


def test_a_better_treatment_ships_after_its_weeks() -> None:
    events = traffic(6_000, rates=(0.1, 0.2))
    tally, _ = counted(*events)
    report = judge(DECLARED, tally)
    assert (ExperimentVerdict.SHIP, 3_000) == (report.verdict, tally.arms[0].subjects)
    longer = judge(replace(DECLARED, weeks=2), tally)
    assert (ExperimentVerdict.CONTINUE, "8.0 of 14 days of event time.") == (
        longer.verdict,
        longer.reasons[0],
    )


@pytest.mark.parametrize(
    ("worse", "metric"),
    [
        ({"rates": (0.2, 0.1)}, "conversion"),
        ({"failures": (0.01, 0.2)}, "errors"),
        ({"latencies": (10.0, 40.0)}, "p99"),
    ],
)
def test_a_worse_treatment_is_rolled_back_at_once(worse: dict[str, tuple[float, float]], metric: str) -> None:
    tally, _ = counted(*traffic(6_000, days=1.0, **worse))
    report = judge(DECLARED, tally)
    assert (ExperimentVerdict.ROLL_BACK, 1) == (report.verdict, len(report.reasons))
    assert report.reasons[0].startswith(metric) and report.reasons[0].endswith("failed")


def test_a_worse_guardrail_blocks_a_better_primary_metric() -> None:
    tally, _ = counted(*traffic(6_000, rates=(0.1, 0.2), failures=(0.0, 0.02)))
    report = judge(DECLARED, tally)
    assert ExperimentVerdict.CONTINUE is report.verdict
    assert [m.metric.name for m in report.metrics if m.metric.decides and not m.passed] == ["errors"]


def test_equal_arms_continue_and_say_how_long() -> None:
    tally, _ = counted(*traffic(6_000, failures=(0.01, 0.01)))
    wanted = replace(DECLARED, metrics=(replace(CONVERSION, minimum_effect=0.02), REVENUE, CTR, ERRORS, P99))
    report = judge(wanted, tally)
    conversion = report.metrics[0]
    assert ExperimentVerdict.CONTINUE is report.verdict
    assert conversion.detectable is not None and conversion.days_needed is not None
    assert 0.02 < conversion.detectable and 8.0 < conversion.days_needed < 80.0
    assert f"about {conversion.days_needed:.1f} more days" in report.reasons[0]


def test_a_sample_ratio_mismatch_has_no_verdict() -> None:
    events = traffic(6_000, rates=(0.1, 0.2))
    dropped = {f"s{i}" for i in range(0, 6_000, 10)}
    tally, _ = counted(*(e for e in events if e.subject not in dropped))
    report = judge(DECLARED, tally)
    assert ExperimentVerdict.CONTINUE is report.verdict
    assert report.reasons[0].startswith("Sample ratio mismatch: 2400 and 3000 subjects")
    split = replace(
        DECLARED, control=Arm(ROLLOUT, RELEASES[0], 4.0), treatment=Arm(ROLLOUT, RELEASES[1], 5.0)
    )
    assert ExperimentVerdict.SHIP is judge(split, tally).verdict


def test_no_failure_among_many_predictions_passes_the_guardrail() -> None:
    few, many = (judge(DECLARED, counted(*traffic(n))[0]).metrics[3] for n in (300, 3_000))
    assert (False, True) == (few.passed, many.passed)
    assert many.difference == 0 and 0 < many.interval.upper < ERRORS.max_loss


def test_a_covariate_narrows_the_interval() -> None:
    """Revenue that is three quarters explained by the revenue of the month before."""
    rng = np.random.default_rng(9)
    events = []
    for i in range(2_000):
        before = float(rng.gamma(2.0, 10.0))
        spent = before + rng.normal(0, 8.0) + (i % 2) * 1.0
        events += [event(f"s{i}", i % 2), event(f"s{i}", i % 2, "before", before)]
        events.append(event(f"s{i}", i % 2, "revenue", spent))
    plain = replace(REVENUE, role=PRIMARY)
    found = {}
    for metric in (plain, replace(plain, covariate="before")):
        declared = replace(DECLARED, metrics=(metric,))
        found[metric.covariate] = judge(declared, counted(*events, declaration=declared)[0]).metrics[0]
    widths = [m.interval.upper - m.interval.lower for m in found.values()]
    assert 0.4 < widths[1] / widths[0] < 0.6, "sqrt(64 / (200 + 64)) is 0.49"
    assert (found[""].control, found[""].passed) == (found["before"].control, False)
    assert found["before"].interval.lower < 1.0 < found["before"].interval.upper


def test_an_empty_experiment_continues() -> None:
    report = judge(DECLARED, Tally.empty(5))
    assert (ExperimentVerdict.CONTINUE, ("0 of 100 subjects in the smaller arm.",)) == (
        report.verdict,
        report.reasons,
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"metrics": (ERRORS,)}, "there must be a primary metric"),
        ({"metrics": (CONVERSION, CONVERSION)}, "must differ"),
        ({"metrics": (CONVERSION, replace(ERRORS, max_loss=0.0))}, "no test proves a loss of 0"),
        ({"metrics": (replace(CONVERSION, numerator=""),)}, "needs the name of an outcome"),
        ({"metrics": (replace(CONVERSION, numerator="prediction.score"),)}, "needs the name of an outcome"),
        ({"metrics": (CONVERSION, replace(P99, numerator=COST))}, "quantile between 0 and 1"),
        ({"metrics": (replace(CONVERSION, role=MetricRole.UNSPECIFIED),)}, "role and kind"),
        ({"metrics": (replace(CONVERSION, denominator=COUNT),)}, "no ratio"),
        ({"metrics": (CONVERSION, replace(CTR, covariate="before"))}, "has a covariate"),
        ({"metrics": (replace(CONVERSION, covariate="buy"),)}, "an outcome of its own"),
        ({"metrics": (replace(CONVERSION, max_loss=float("nan")),)}, "finite"),
        ({"weeks": 0}, "weeks must be 1 to 52"),
        ({"alpha": 1.0}, "alpha"),
        ({"control": Arm(ROLLOUT, RELEASES[1])}, "must differ"),
        ({"control": Arm(f"{MODEL}/variants/holdback", RELEASES[0])}, "a rollout divides its subjects alone"),
        ({"control": Arm("champion", RELEASES[0])}, "neither a rollout nor a variant"),
        ({"control": Arm(ROLLOUT, RELEASES[0].replace("late", "early"))}, "must belong to"),
        ({"control": Arm(ROLLOUT, RELEASES[0], 0.0)}, "shares"),
    ],
)
def test_a_declaration_with_problems_is_refused(changes: dict[str, object], problem: str) -> None:
    assert DECLARED is DECLARED.checked(NAME)
    with pytest.raises(InvalidExperiment, match=problem):
        replace(DECLARED, **changes).checked(NAME)  # type: ignore[arg-type]
