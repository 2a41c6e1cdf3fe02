"""Variants beside champion and challenger, and specifications that are fetched once."""

from __future__ import annotations

import pytest

from flywheel_common.kafka import topics
from flywheel_inference.routing.canary_assignment import bucket
from flywheel_inference.routing.route import CHALLENGER, CHAMPION, SHADOW
from tests.support.builders.inference import MODEL, expected_score
from tests.support.eventually import eventually
from tests.support.servers.inference import MemoryDeployment

W, OTHER, THIRD = (0.5, -0.25, 1.0), (1.0, 0.5, 0.0), (-1.0, 0.0, 0.5)


async def test_variants_answer_and_copy_their_subjects(memory_deployment: MemoryDeployment) -> None:
    registry = memory_deployment.registry
    champion, other, third = (registry.release(n, w) for n, w in ((1, W), (2, OTHER), (3, THIRD)))
    gateway = await memory_deployment.gateway()
    variants = {"hold": (champion, 20.0, 0.0), "months": (other, 50.0, 0.0), "copy": (third, 0.0, 100.0)}
    await gateway.serves(registry.want(champion=champion, variants=variants))
    served = [(v.name, v.release[-1], v.percent, v.shadow_percent) for v in (await gateway.status()).variants]
    assert served == [("hold", "1", 20, 0), ("months", "2", 50, 0), ("copy", "3", 0, 100)]
    weights = {1: W, 2: OTHER}
    expected = {}
    for number in range(40):
        subject = f"subject-{number}"
        held = bucket(f"{MODEL}/variants/hold", subject) < 2_000
        months = not held and bucket(f"{MODEL}/variants/months", subject) < 5_000
        group = f"{MODEL}/variants/hold" if held else f"{MODEL}/variants/months" if months else ""
        expected[subject] = (2 if months else 1, CHALLENGER if months else CHAMPION, group)
    assert len(set(expected.values())) == 3
    for subject, (version, role, _) in expected.items():
        answer = await gateway.predict("UA", 3.0, "JFK", subject=subject, prediction_id=subject)
        assert (answer.release, answer.role) == (f"{MODEL}/releases/{version}", role)
        assert answer.score == pytest.approx(expected_score(weights[version], 0.0, [2, 3, 0]), abs=1e-5)
    logged = await memory_deployment.logged(topics.PREDICTION_LOGGED, set(expected), each=2)
    for subject, rows in logged.items():
        found = {batch.role: (batch.release, batch.rollout) for _, batch, _ in rows}
        version, role, group = expected[subject]
        assert found == {
            role: (f"{MODEL}/releases/{version}", group),
            SHADOW: (f"{MODEL}/releases/3", f"{MODEL}/variants/copy"),
        }


async def test_a_specification_is_fetched_once(memory_deployment: MemoryDeployment) -> None:
    registry = memory_deployment.registry
    first, second = registry.release(1, W), registry.release(2, OTHER)
    gateway = await memory_deployment.gateway()
    for _ in range(3):
        await gateway.serves(registry.want(champion=first, warm=[second]))
        await gateway.serves(registry.want(champion=second, warm=[first]))
    await eventually(lambda: len(registry.reports) > 1)
    assert len(registry.spec_reads) == 2
    assert set(registry.spec_reads) == set(registry.specs)
