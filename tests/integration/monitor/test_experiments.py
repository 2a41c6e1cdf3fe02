"""An experiment in the real process: from Kafka to its report, with the process killed meanwhile."""

from __future__ import annotations

import numpy as np

from flywheel_protos.monitor.v1 import experiment_pb2 as pb
from flywheel_protos.monitor.v1 import monitor_pb2
from tests.support.builders.monitor import CHALLENGER, CHAMPION, START_US
from tests.support.eventually import eventually
from tests.support.servers.monitor_process import MonitoredModel

DAYS, SUBJECTS, PER_DAY = 8, 40, 120
"""Days of traffic, subjects of each arm per day, and their predictions."""


def declared(world: MonitoredModel) -> pb.Experiment:
    arms = [
        pb.ExperimentArm(source=f"{world.model}/rollouts/1", release=world.release(number))
        for number in (1, 2)
    ]
    metrics = [
        pb.ExperimentMetric(
            name="conversion",
            role=pb.METRIC_ROLE_PRIMARY,
            kind=pb.METRIC_KIND_PROPORTION,
            numerator="purchase",
        ),
        pb.ExperimentMetric(
            name="revenue",
            role=pb.METRIC_ROLE_SECONDARY,
            kind=pb.METRIC_KIND_MEAN,
            numerator="purchase",
        ),
    ]
    return pb.Experiment(
        name=f"{world.model}/experiments/price", control=arms[0], treatment=arms[1], metrics=metrics, weeks=1
    )


async def test_an_experiment_counts_exactly_while_the_process_is_killed(world: MonitoredModel) -> None:
    for version in (1, 2):
        world.register(version)
    experiment = declared(world)
    await world.monitor.stub.CreateExperiment(pb.CreateExperimentRequest(experiment=experiment))
    rng = np.random.default_rng(3)
    spent: list[dict[str, float]] = [{}, {}]
    outcomes = 0
    for day in range(DAYS):
        for arm, role in enumerate((CHAMPION, CHALLENGER)):
            r = world.rows(PER_DAY, seed=10 * day + arm, start_us=START_US + day * 86_400_000_000)
            subjects = [f"{arm}-{day}-{i % SUBJECTS}" for i in range(PER_DAY)]
            sent = {"role": role, "release": 1 + arm, "version": 1 + arm, "chunk": 20}
            await world.predict(**r, subjects=subjects, rollout=f"{world.model}/rollouts/1", **sent)
            buys = np.flatnonzero(rng.uniform(size=PER_DAY) < (0.1, 0.4)[arm])
            amounts = rng.integers(1, 9, len(buys)).astype(float)
            bought = [r["ids"][i] for i in buys]
            await world.label(bought, amounts, r["times"][buys], name="purchase")
            outcomes += len(buys)
            for subject in subjects:
                spent[arm].setdefault(subject, 0.0)
            for i, amount in zip(buys, amounts, strict=True):
                spent[arm][subjects[i]] += amount
        if day in (2, 5):
            await world.monitor.kill()
            await world.monitor.start()
    await world.processed(2 * DAYS * PER_DAY, outcomes, within=60)

    async def counted() -> pb.ExperimentReport:
        request = pb.GetExperimentRequest(name=experiment.name)
        found = (await world.monitor.stub.GetExperiment(request)).report
        arms = found.control, found.treatment
        assert [DAYS * PER_DAY] * 2 == [arm.predictions for arm in arms]
        values = [list(mine.values()) for mine in spent]
        shares, means = [np.mean(np.array(v) > 0) for v in values], [np.mean(v) for v in values]
        metrics = {m.name: (m.control, m.treatment) for m in found.metrics}
        assert {"conversion": tuple(shares), "revenue": tuple(means)} == metrics
        return found

    report = await eventually(counted, within=30)
    assert [DAYS * SUBJECTS] * 2 == [report.control.subjects, report.treatment.subjects]
    assert (0, pb.EXPERIMENT_VERDICT_SHIP) == (report.crossed_subjects, report.verdict)
    compared = await world.monitor.stub.CompareVariants(
        monitor_pb2.CompareVariantsRequest(
            rollout=experiment.control.source,
            champion_release=world.release(1),
            challenger_release=world.release(2),
            mode=monitor_pb2.COMPARISON_MODE_CANARY,
        )
    )
    assert (experiment.name, pb.EXPERIMENT_VERDICT_SHIP) == (compared.experiment, compared.experiment_verdict)
