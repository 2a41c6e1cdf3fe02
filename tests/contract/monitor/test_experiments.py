"""Contract tests of experiments: what ingestion notes, what is counted of it, and the RPCs."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from flywheel_common.errors import InvalidPageToken
from flywheel_common.grpc.channel import from_rpc_error
from flywheel_monitor.experiments.counting import count_events_once
from flywheel_monitor.experiments.errors import (
    ExperimentConcluded,
    ExperimentExists,
    TooManyExperiments,
    UnknownExperiment,
)
from flywheel_monitor.experiments.experiment import (
    MAX_RUNNING,
    Arm,
    Declaration,
    ExperimentState,
    ExperimentVerdict,
)
from flywheel_monitor.experiments.metric import COST, COUNT, FAILURES, LATENCY, Metric, MetricKind, MetricRole
from flywheel_monitor.experiments.tally import BOTH, Tally
from flywheel_monitor.models.names import ExperimentName
from flywheel_protos.monitor.v1 import experiment_pb2 as pb
from tests.support.builders.monitor import (
    CHALLENGER,
    HOUR_US,
    MODEL,
    SHADOW,
    START_US,
    outcomes,
    predictions,
)
from tests.support.servers.monitor import LocalMonitor

ROLLOUT = f"{MODEL}/rollouts/1"
RELEASES = f"{MODEL}/releases/1", f"{MODEL}/releases/2"
NAME = ExperimentName.parse(f"{MODEL}/experiments/price")
METRICS = (
    Metric("conversion", MetricRole.PRIMARY, MetricKind.PROPORTION, "buy"),
    Metric("label", MetricRole.SECONDARY, MetricKind.MEAN, "label"),
    Metric("ctr", MetricRole.SECONDARY, MetricKind.RATIO, "click", COUNT),
    Metric("errors", MetricRole.GUARDRAIL, MetricKind.RATIO, FAILURES, COUNT, True, 0.1),
    Metric("cost", MetricRole.GUARDRAIL, MetricKind.RATIO, COST, COUNT, True, 0.1),
    Metric("p99", MetricRole.GUARDRAIL, MetricKind.QUANTILE, LATENCY, "", True, 0.5, True),
)
DECLARED = Declaration(Arm(ROLLOUT, RELEASES[0]), Arm(ROLLOUT, RELEASES[1]), METRICS, weeks=1)


async def started(monitor: LocalMonitor, name: ExperimentName = NAME, **changes: Any) -> None:
    declared = Declaration(**{**vars_of(DECLARED), **changes})
    async with monitor.store.transaction() as records:
        await records.add_experiment(name, declared, "ann")


def vars_of(declaration: Declaration) -> dict[str, Any]:
    fields = ("control", "treatment", "metrics", "weeks", "alpha", "generation")
    return {field: getattr(declaration, field) for field in fields}


async def counted(monitor: LocalMonitor, name: ExperimentName = NAME) -> Tally:
    while await count_events_once(monitor.store):
        pass
    async with monitor.store.reading() as records:
        return (await records.experiment(name))[1]


def value(tally: Tally, arm: int, metric: int) -> tuple[float, float]:
    sums = tally.arms[arm].sums[metric].over(tally.arms[arm].subjects)
    return float(sums.m), float(sums.d)


async def test_predictions_and_outcomes_count_once_in_any_order(monitor: LocalMonitor) -> None:
    await monitor.predicted(predictions(["before"], rollout=ROLLOUT, subjects=["old"]))
    await started(monitor)
    await monitor.labelled(outcomes(["before"], [1.0], name="buy", outcome_ids=["b"]))
    step = {"rollout": ROLLOUT, "generation": 3}
    control = predictions(
        ["a", "b", "c"], subjects=["s1", "s1", ""], costs=[0.25, 0.5, 1.0], reasons=["", "x", ""], **step
    )
    treatment = predictions(["d"], subjects=["s2"], version=2, release=2, role=CHALLENGER, **step)
    early = outcomes(["a", "d"], [1.0, 1.0], name="click", outcome_ids=["1", "2"])
    await monitor.labelled(early, outcomes(["c"], [1.0], times=[START_US + HOUR_US]))
    for _ in range(2):
        await monitor.predicted(control, treatment)
        await monitor.labelled(early, outcomes(["b", "b"], [1.0, 1.0], name="buy", outcome_ids=["3", "4"]))
    twice = outcomes(["b", "b"], [2.0, 9.0], name="click", outcome_ids=["5", "5"])
    await monitor.labelled(twice)
    corrected = outcomes(["c"], [0.0], times=[START_US + 2 * HOUR_US], outcome_ids=["later"])
    await monitor.labelled(corrected, outcomes(["a"], [1.0]))
    await monitor.predicted(
        predictions(["a"], version=2, release=2, role=SHADOW, subjects=["s1"], **step),
        predictions(["e"], subjects=["s3"]),
    )
    tally = await counted(monitor)
    assert (2, 3, 1, 1) == tuple(n for arm in tally.arms for n in (arm.subjects, arm.predictions))
    assert [(1, 0), (1, 0), (3, 3), (1, 3), (1.75, 3)] == [value(tally, 0, i) for i in range(5)]
    assert [(0, 0), (0, 0), (1, 1), (0, 1), (0, 1)] == [value(tally, 1, i) for i in range(5)]
    assert tally == await counted(monitor), "every event is taken once"


async def test_the_partitions_of_a_subject_add_up(monitor: LocalMonitor) -> None:
    await started(monitor, generation=7)
    for partition in range(3):
        ids = [f"{partition}-{i}" for i in range(5)]
        batch = predictions(ids, subjects=["s"] * 5, rollout=ROLLOUT, generation=7)
        await monitor.predicted(batch, partition=partition)
        names = [f"o{i}" for i in ids]
        await monitor.labelled(outcomes(ids, [2.0] * 5, name="click", outcome_ids=names), partition=partition)
        await monitor.predicted(
            predictions([f"{i}'" for i in ids], rollout=ROLLOUT, generation=6), partition=partition
        )
    tally = await counted(monitor)
    assert (1, 15, (30.0, 15.0)) == (tally.arms[0].subjects, tally.arms[0].predictions, value(tally, 0, 2))
    assert START_US == tally.first_us == tally.reached_us


async def test_a_subject_that_changed_its_arm_is_left_out(monitor: LocalMonitor) -> None:
    await started(monitor)
    await monitor.predicted(predictions(["a"], subjects=["s"], rollout=ROLLOUT))
    await counted(monitor)
    other = {"version": 2, "release": 2, "role": CHALLENGER, "rollout": ROLLOUT}
    await monitor.predicted(predictions(["b"], subjects=["s"], **other))
    tally = await counted(monitor)
    assert (0, 0, 1) == (tally.arms[0].subjects, tally.arms[1].subjects, tally.crossed)
    async with monitor.store.reading() as records:
        experiment, _ = await records.experiment(NAME)
        known = await records.subjects(experiment.id, ["s", "t"])
    assert {"s": BOTH} == {name: subject.arm for name, subject in known.items()}


async def test_named_variants_are_arms(monitor: LocalMonitor) -> None:
    holdback, new = f"{MODEL}/variants/holdback", f"{MODEL}/variants/new"
    await started(monitor, control=Arm(holdback, RELEASES[0]), treatment=Arm(new, RELEASES[1]))
    await monitor.predicted(
        predictions(["a", "b"], rollout=holdback, generation=3),
        predictions(["c"], rollout=new, version=2, release=2, role=CHALLENGER, generation=5),
        predictions(["d"]),
    )
    tally = await counted(monitor)
    assert [2, 1] == [arm.subjects for arm in tally.arms]


async def test_the_champion_without_a_rollout_is_an_arm(monitor: LocalMonitor) -> None:
    holdback = f"{MODEL}/variants/holdback"
    await started(monitor, control=Arm(MODEL, RELEASES[1], 90.0), treatment=Arm(holdback, RELEASES[0], 10.0))
    champion: dict[str, Any] = {"version": 2, "release": 2}
    await monitor.predicted(
        predictions(["a", "b", "c"], **champion),
        predictions(["d"], rollout=holdback),
        predictions(["e"]),  # another release without a rollout, as before a promotion
        predictions(["f"], rollout=ROLLOUT, **champion),
        predictions(["a"], role=SHADOW, **champion),
    )
    await monitor.labelled(outcomes(["a", "d"], [2.0, 1.0], name="buy"))
    tally = await counted(monitor)
    assert [3, 1] == [arm.subjects for arm in tally.arms]
    assert [3, 1] == [arm.predictions for arm in tally.arms]


async def test_a_concluded_experiment_counts_no_more_and_keeps_its_sums(monitor: LocalMonitor) -> None:
    await started(monitor)
    await monitor.predicted(predictions(["a", "b"], rollout=ROLLOUT))
    before = await counted(monitor)
    async with monitor.store.transaction() as records:
        found = await records.conclude_experiment(NAME, ExperimentVerdict.SHIP, "better", "bob")
    assert (ExperimentState.CONCLUDED, ExperimentVerdict.SHIP) == (found.state, found.verdict)
    assert ("better", "bob", "ann") == (found.reason, found.concluded_by, found.created_by)
    await monitor.predicted(predictions(["c"], rollout=ROLLOUT))
    assert before == await counted(monitor)
    async with monitor.store.reading() as records:
        assert {} == await records.subjects(found.id, ["a", "b"]), "subjects are deleted"
        assert [] == await records.running_experiments(MODEL)
    with pytest.raises(ExperimentConcluded):
        async with monitor.store.transaction() as records:
            await records.conclude_experiment(NAME, ExperimentVerdict.SHIP, "again", "bob")


async def test_experiments_are_listed_newest_first(monitor: LocalMonitor) -> None:
    names = [ExperimentName("p", "late", f"e{i}") for i in range(MAX_RUNNING)]
    for name in names:
        await started(monitor, name)
    await started(monitor, ExperimentName("p", "other", "e1"))
    with pytest.raises(TooManyExperiments):
        await started(monitor)
    async with monitor.store.transaction() as records:
        await records.conclude_experiment(names[0], ExperimentVerdict.CONTINUE, "over", "bob")
    with pytest.raises(ExperimentExists):
        await started(monitor, names[3])
    found, token = [], ""
    async with monitor.store.reading() as records:
        while True:
            page = await records.experiments(MODEL, 4, token)
            found += [e.name for e in page.items]
            if not (token := page.next_page_token):
                break
        with pytest.raises(UnknownExperiment):
            await records.experiment(NAME)
    assert [str(name) for name in names[::-1]] == found


async def test_experiments_are_listed_by_the_release_of_their_treatment(monitor: LocalMonitor) -> None:
    third = f"{MODEL}/releases/3"
    for i, release in enumerate((RELEASES[1], third, RELEASES[1], third, third)):
        await started(monitor, ExperimentName("p", "late", f"e{i}"), treatment=Arm(ROLLOUT, release))
    async with monitor.store.reading() as records:
        first = await records.experiments(MODEL, 2, "", third)
        second = await records.experiments(MODEL, 2, first.next_page_token, third)
        none = await records.experiments(MODEL, 2, "", RELEASES[0])
        with pytest.raises(InvalidPageToken):
            await records.experiments(MODEL, 2, first.next_page_token, RELEASES[1])
    names = [e.name.rpartition("/")[2] for e in (*first.items, *second.items)]
    assert (["e4", "e3", "e1"], "", []) == (names, second.next_page_token, none.items)


async def test_a_comparison_carries_the_verdict_of_its_experiment(monitor: LocalMonitor) -> None:
    assert (await monitor.compare(shadow=False)).experiment is None
    later = ExperimentName("p", "late", "later")
    await started(monitor, generation=4)
    await started(monitor, later)
    found = (await monitor.compare(shadow=False, generation=4)).experiment
    assert found is not None
    assert (str(NAME), ExperimentVerdict.CONTINUE) == (found.experiment.name, found.verdict)
    assert "0 of 100 subjects in the smaller arm." == found.reason
    other_step = (await monitor.compare(shadow=False, generation=5)).experiment
    assert other_step is not None and str(later) == other_step.experiment.name


# ------------------------------------------------------------------------------------------------ the RPCs


def message(**changes: Any) -> pb.Experiment:
    fields = {
        "name": str(NAME),
        "control": pb.ExperimentArm(source=ROLLOUT, release=RELEASES[0]),
        "treatment": pb.ExperimentArm(source=ROLLOUT, release=RELEASES[1]),
        "metrics": [
            pb.ExperimentMetric(
                name="ctr",
                role=pb.METRIC_ROLE_PRIMARY,
                kind=pb.METRIC_KIND_RATIO,
                numerator="click",
                minimum_effect=0.01,
            ),
            pb.ExperimentMetric(
                name="p99",
                role=pb.METRIC_ROLE_GUARDRAIL,
                kind=pb.METRIC_KIND_QUANTILE,
                lower_is_better=True,
                max_loss=0.5,
                relative=True,
            ),
        ],
        "weeks": 2,
    }
    return pb.Experiment(**{**fields, **changes})


async def test_an_experiment_is_created_read_listed_and_concluded(edge: LocalMonitor, stub: Any) -> None:
    created = (await stub.CreateExperiment(pb.CreateExperimentRequest(experiment=message()))).experiment
    assert (0.05, 2, pb.EXPERIMENT_STATE_RUNNING) == (created.alpha, created.weeks, created.state)
    assert [(COUNT, "click"), ("", LATENCY)] == [(m.denominator, m.numerator) for m in created.metrics]
    assert (1.0, 1.0, 0.99) == (created.control.share, created.treatment.share, created.metrics[1].quantile)
    await edge.predicted(predictions(["a", "b", "c"], rollout=ROLLOUT, latencies=[9.0, 9.0, 9.0]))
    await counted(edge)
    found = await stub.GetExperiment(pb.GetExperimentRequest(name=str(NAME)))
    assert created == found.experiment
    report = found.report
    assert pb.EXPERIMENT_VERDICT_CONTINUE == report.verdict and list(report.reasons)
    assert (3, 3, 0) == (report.control.subjects, report.control.predictions, report.treatment.subjects)
    assert START_US == report.covered_until.ToMicroseconds()
    assert not report.metrics[0].HasField("difference") and report.metrics[0].upper == float("inf")
    listed = await stub.ListExperiments(pb.ListExperimentsRequest(parent=MODEL))
    assert [created] == list(listed.experiments)
    request = pb.ConcludeExperimentRequest(
        name=str(NAME), verdict=pb.EXPERIMENT_VERDICT_ROLL_BACK, reason="costs"
    )
    concluded = (await stub.ConcludeExperiment(request)).experiment
    assert ("costs", pb.EXPERIMENT_STATE_CONCLUDED) == (concluded.reason, concluded.state)
    assert concluded.HasField("concluded_at")


def created_with(**changes: Any) -> pb.CreateExperimentRequest:
    return pb.CreateExperimentRequest(experiment=message(**changes))


REFUSED: list[tuple[str, str, Any]] = [
    ("INVALID_ARGUMENT INVALID_EXPERIMENT", "CreateExperiment", lambda: created_with(weeks=0)),
    ("INVALID_ARGUMENT INVALID_EXPERIMENT", "CreateExperiment", lambda: created_with(metrics=[])),
    ("INVALID_ARGUMENT INVALID_NAME", "CreateExperiment", lambda: created_with(name=MODEL)),
    ("ALREADY_EXISTS EXPERIMENT_EXISTS", "CreateExperiment", created_with),
    (
        "NOT_FOUND UNKNOWN_EXPERIMENT",
        "GetExperiment",
        lambda: pb.GetExperimentRequest(name=f"{MODEL}/experiments/none"),
    ),
    (
        "INVALID_ARGUMENT INVALID_PAGE_TOKEN",
        "ListExperiments",
        lambda: pb.ListExperimentsRequest(parent=MODEL, page_token="x"),
    ),
    (
        "INVALID_ARGUMENT REASON_REQUIRED",
        "ConcludeExperiment",
        lambda: pb.ConcludeExperimentRequest(name=str(NAME), verdict=pb.EXPERIMENT_VERDICT_SHIP),
    ),
    (
        "INVALID_ARGUMENT VERDICT_REQUIRED",
        "ConcludeExperiment",
        lambda: pb.ConcludeExperimentRequest(name=str(NAME), reason="r"),
    ),
]


async def test_refusals_have_their_status_and_reason(edge: LocalMonitor, stub: Any) -> None:
    await stub.CreateExperiment(created_with())
    found = []
    for _, method, make in REFUSED:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(stub, method)(make())
        error = from_rpc_error(caught.value)
        found.append((f"{error.code.name} {error.reason}", method))
    assert [(expected, method) for expected, method, _ in REFUSED] == found
