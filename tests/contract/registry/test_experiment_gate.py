"""The experiment gate, over both stores, and its source: the experiments of a real monitor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from flywheel_common.clock import SystemClock
from flywheel_common.grpc.channel import channel
from flywheel_common.postgres.transactions import Store
from flywheel_monitor.experiments.experiment import Arm, Declaration
from flywheel_monitor.experiments.experiment import ExperimentVerdict as MonitorVerdict
from flywheel_monitor.experiments.metric import Metric, MetricKind, MetricRole
from flywheel_monitor.models.names import ExperimentName
from flywheel_protos.registry.v1 import experiment_rule_pb2, model_pb2, registry_pb2
from flywheel_registry.evidence.experiment_verdict import Experiments, ExperimentVerdict
from flywheel_registry.fakes.monitor import MemoryExperiments
from flywheel_registry.fakes.store import MemoryStore
from flywheel_registry.gates.errors import GateFailed
from flywheel_registry.gates.verdicts import ExperimentVerdicts
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.version import ModelVersion
from flywheel_registry.policies.gate_policy import ExperimentRequirement, ExperimentRule, GatePolicy
from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.promotion.promotion import Promotions
from flywheel_registry.releases.names import ReleaseName
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.rollouts.start import RolloutStart
from flywheel_registry.server import wire
from flywheel_registry.stages.transitions import Stage
from flywheel_registry.store.grpc.experiments import GrpcExperiments
from tests.support.builders.registry import CREATED_AT, MODEL, ModelClient, add_model
from tests.support.ports import free_port
from tests.support.servers.monitor import listening, memory_monitor
from tests.support.servers.registry import NO_TICKS, memory_ports, refused, registry_settings, running

RELEASE = f"{MODEL}/releases/1"
PRICE, COST = f"{MODEL}/experiments/price", f"{MODEL}/experiments/cost"
NEEDS_SHIP = ExperimentRule(ExperimentRequirement.SHIP)
NO_ROLL_BACK = ExperimentRule(ExperimentRequirement.NO_ROLL_BACK)
Start = Callable[..., Awaitable[Any]]


def verdict(name: str, value: str) -> ExperimentVerdict:
    return ExperimentVerdict(name, value, "conversion +3 %")


@pytest.fixture
async def monitor() -> MemoryExperiments:
    return MemoryExperiments()


@pytest.fixture
async def start(store: Store[RolloutRecords], monitor: MemoryExperiments) -> Start:
    """Starts a rollout of the only release under a rule, with what the monitor answers now."""
    await add_model(store, template=ModelVersion(MODEL, stage=Stage.STAGING, registered_at=CREATED_AT))
    verdicts = ExperimentVerdicts(store, monitor)

    async def start(rule: ExperimentRule, policy: RolloutPolicy | None = None, **fields: Any) -> Any:
        async with store.transaction() as records:
            model = await records.model(MODEL)
            assert model is not None
            await records.change_model(replace(model, gate_policy=GatePolicy(experiment=rule)))
        found = await verdicts.of_release(ReleaseName.parse(RELEASE))
        async with store.transaction() as records:
            return await RolloutStart(SystemClock()).start(
                records,
                ReleaseName.parse(RELEASE),
                policy,
                fields.pop("reason", ""),
                "ann",
                experiments=found,
                **fields,
            )

    return start


@pytest.mark.parametrize(
    ("rule", "verdicts", "failed"),
    [
        (NEEDS_SHIP, [], "there is none"),
        (NEEDS_SHIP, [(PRICE, "CONTINUE")], f"{PRICE}: CONTINUE"),
        (NEEDS_SHIP, [(PRICE, "ROLL_BACK"), (COST, "SHIP")], f"{PRICE}: ROLL_BACK"),
        (NEEDS_SHIP, [(PRICE, "SHIP"), (COST, "ROLL_BACK")], ""),
        (replace(NEEDS_SHIP, experiment=COST), [(PRICE, "SHIP"), (COST, "CONTINUE")], f"{COST}: CONTINUE"),
        (replace(NEEDS_SHIP, experiment=COST), [(PRICE, "ROLL_BACK"), (COST, "SHIP")], ""),
        (replace(NEEDS_SHIP, experiment=COST), [(PRICE, "SHIP")], f"{COST} with this release"),
        (NO_ROLL_BACK, [], ""),
        (NO_ROLL_BACK, [(PRICE, "CONTINUE"), (COST, "SHIP")], ""),
        (NO_ROLL_BACK, [(PRICE, "SHIP"), (COST, "ROLL_BACK")], f"{COST}: ROLL_BACK"),
    ],
)
async def test_a_rollout_needs_what_the_rule_says(
    start: Start,
    store: Store[RolloutRecords],
    monitor: MemoryExperiments,
    rule: ExperimentRule,
    verdicts: list[tuple[str, str]],
    failed: str,
) -> None:
    monitor.found[RELEASE] = [verdict(*one) for one in verdicts]
    monitor.found[f"{MODEL}/releases/2"] = [verdict(PRICE, "ROLL_BACK" if not failed else "SHIP")]
    if failed:
        with pytest.raises(GateFailed) as error:
            await start(rule)
        assert failed in str(error.value)
        return
    await start(rule)
    async with store.reading() as records:
        (entry,) = [e for e in await records.audit(MODEL, 1 << 60, 100) if e.action == "START_ROLLOUT"]
    assert "passed: experiment: " in entry.reason


async def test_a_silent_monitor_fails_the_gate_and_an_override_passes_it(
    start: Start, monitor: MemoryExperiments
) -> None:
    monitor.down = True
    with pytest.raises(GateFailed) as error:
        await start(NO_ROLL_BACK)
    assert "the monitor does not answer" in str(error.value)
    assert (await start(NO_ROLL_BACK, override=True, reason="incident 7")).number == 1


async def test_an_ab_test_is_not_held_to_experiments_before_it(
    start: Start, monitor: MemoryExperiments
) -> None:
    policy = RolloutPolicy(canary_percents=(50.0,), until_verdict=True)
    assert (await start(NEEDS_SHIP, policy, reason="price test")).number == 1


async def test_promotion_to_production_stores_the_finding(
    store: Store[RolloutRecords], monitor: MemoryExperiments
) -> None:
    await add_model(store, template=ModelVersion(MODEL, stage=Stage.CANDIDATE, registered_at=CREATED_AT))
    async with store.transaction() as records:
        model = await records.model(MODEL)
        assert model is not None
        await records.change_model(replace(model, gate_policy=GatePolicy(experiment=NEEDS_SHIP)))
        version = await records.version(MODEL, 1)
        assert version is not None
        await records.record_check(version, [])
    monitor.found[RELEASE] = [verdict(PRICE, "ROLL_BACK")]
    name = VersionName.parse(f"{MODEL}/versions/1")
    found = await ExperimentVerdicts(store, monitor).of_version(name)
    async with store.transaction() as records:
        result = await Promotions(SystemClock()).promote(
            records,
            name,
            Stage.PRODUCTION,
            "incident 7",
            "ann",
            override=True,
            check_path=lambda path: None,
            added={},
            experiments=found,
        )
    line = f"FAILED: experiment: {PRICE}: ROLL_BACK: conversion +3 %, SHIP needed"
    assert not result.passed and line in result.evidence.findings


async def test_a_model_without_a_rule_asks_no_monitor(store: Store[RolloutRecords]) -> None:
    await add_model(store)
    down = MemoryExperiments()
    down.down = True
    verdicts = ExperimentVerdicts(store, down)
    assert () == await verdicts.of_release(ReleaseName.parse(RELEASE))
    assert () == await verdicts.of_version(VersionName.parse(f"{MODEL}/versions/1"))


# ------------------------------------------------------------------------------------------------ the edge


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"experiment": PRICE}, "requirement"),
        ({"requirement": 7}, "requirement"),
        ({"requirement": 1, "experiment": "price"}, "projects/{project}"),
        ({"requirement": 2, "experiment": PRICE}, "must be empty"),
    ],
)
async def test_a_wrong_rule_is_refused(client: ModelClient, fields: dict[str, Any], problem: str) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_POLICY") as error:
        await client.create(
            gate_policy=model_pb2.GatePolicy(experiment=experiment_rule_pb2.ExperimentRule(**fields))
        )
    assert problem in error.message


async def test_the_rule_reads_back_and_holds_at_the_edge() -> None:
    rule = experiment_rule_pb2.ExperimentRule(requirement=1)
    ports, clock = memory_ports(MemoryStore())
    experiments = ports.experiments
    assert isinstance(experiments, MemoryExperiments)
    async with running(wire(registry_settings(**NO_TICKS), clock, ports)) as stub:
        client = ModelClient(stub)
        created = await client.create(gate_policy=model_pb2.GatePolicy(experiment=rule))
        assert rule == created.gate_policy.experiment
        version, release = await client.staged()
        with refused("FAILED_PRECONDITION", "GATE_FAILED"):
            await client.start(release.name)
        promoted = await client.promote(version.name, to_stage="STAGE_CANDIDATE")
        assert promoted.passed
        forced = registry_pb2.PromoteModelVersionRequest(
            name=version.name, to_stage="STAGE_PRODUCTION", override=True, reason="incident 7"
        )
        answer = await stub.PromoteModelVersion(forced)
        assert any("experiment: an experiment with this release" in line for line in answer.evidence.findings)


# ---------------------------------------------------------------------------------------------- the monitor

ROLLOUT = f"{MODEL}/rollouts/1"
METRICS = (Metric("conversion", MetricRole.PRIMARY, MetricKind.PROPORTION, "buy"),)


@pytest.fixture
async def experiments() -> AsyncIterator[tuple[Any, Experiments]]:
    """A real monitor in memory, and the port over gRPC to it."""
    local = memory_monitor()
    async with listening(local.store) as address, channel(address, client_name="tests") as opened:
        yield local, GrpcExperiments(opened, 5.0)


async def test_verdicts_are_those_of_now_and_of_the_conclusion(experiments: tuple[Any, Experiments]) -> None:
    local, port = experiments
    for i, release in enumerate((1, 2, 1, 1)):
        declared = Declaration(
            Arm(ROLLOUT, f"{MODEL}/releases/9"), Arm(ROLLOUT, f"{MODEL}/releases/{release}"), METRICS, weeks=1
        )
        async with local.store.transaction() as records:
            await records.add_experiment(ExperimentName("p", "late", f"e{i}"), declared, "ann")
    for i, concluded in ((0, MonitorVerdict.ROLL_BACK), (2, MonitorVerdict.SHIP)):
        async with local.store.transaction() as records:
            await records.conclude_experiment(
                ExperimentName("p", "late", f"e{i}"), concluded, f"reason {i}", "bob"
            )
    found = await port.verdicts(RELEASE)
    assert found is not None
    names = [(one.experiment.rpartition("/")[2], one.verdict) for one in found]
    assert [("e3", "CONTINUE"), ("e2", "SHIP"), ("e0", "ROLL_BACK")] == names
    assert "reason 2" == found[1].reason and found[0].reason
    assert [] == await port.verdicts(f"{MODEL}/releases/7")


async def test_no_answer_is_no_verdict_and_no_error() -> None:
    async with channel(f"127.0.0.1:{free_port()}", client_name="tests", health_check=False) as nowhere:
        assert await GrpcExperiments(nowhere, 0.2).verdicts(RELEASE) is None
