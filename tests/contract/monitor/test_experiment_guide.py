"""The programs and commands of docs/guides/experiments.md, on a registry and a monitor in memory."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import flywheel as fw
from flywheel.cli.main import app
from flywheel_monitor.experiments.counting import count_events_once
from flywheel_protos.monitor.v1 import experiment_pb2 as pb
from flywheel_registry.fakes.store import MemoryStore
from tests.support.builders.monitor import CHALLENGER, START_US, outcomes, predictions
from tests.support.builders.registry import ModelClient, gateway_with
from tests.support.servers.monitor import LocalMonitor, listening, memory_monitor
from tests.support.servers.registry import running_memory_registry

GUIDE = (Path(__file__).resolve().parents[3] / "docs" / "guides" / "experiments.md").read_text()
MODEL = "projects/default/models/late"
NAME = f"{MODEL}/experiments/price"
DAY_US = 86_400_000_000


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    return [body for name, body in found if name == language]


COMMANDS = [shlex.split(line) for body in blocks("") for line in body.splitlines()]


@dataclass
class Platform:
    monitor: LocalMonitor
    environment: dict[str, str]
    folder: Path

    @property
    def addresses(self) -> dict[str, str]:
        """Where the SDK finds the services."""
        return {
            name: self.environment[f"FLYWHEEL_{name.upper()}_ADDRESS"] for name in ("registry", "monitor")
        }

    async def run(self, command: list[str]) -> str:
        """Run a command of the guide in the folder of its files."""
        assert command[0] == "flywheel"
        arguments = [str(self.folder / p) if (self.folder / p).is_file() else p for p in command]
        done = await asyncio.to_thread(CliRunner().invoke, app, arguments[1:], env=self.environment)
        assert done.exit_code == 0, done.output
        return done.output


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    monitor = memory_monitor()
    for number in (1, 2):
        monitor.references.known[f"{MODEL}/versions/{number}"] = next(iter(monitor.references.known.values()))
    async with running_memory_registry(MemoryStore()) as stub, listening(monitor.store) as address:
        client = ModelClient(stub)
        environment = {
            "FLYWHEEL_REGISTRY_ADDRESS": stub.address,
            "FLYWHEEL_MONITOR_ADDRESS": address,
            "COLUMNS": "300",
        }
        (tmp_path / "ab.json").write_text(blocks("json")[0])
        (tmp_path / "price.py").write_text(blocks("python")[1])
        await client.create()
        await client.champion()
        await client.staged("second")
        yield Platform(monitor, environment, tmp_path)


async def play(monitor: LocalMonitor, sources: tuple[str, str], generation: int) -> None:
    """15 days of 4,000 subjects; the treatment sells twice as often."""
    rng = np.random.default_rng(7)
    for day in range(16):
        for arm, source in enumerate(sources):
            ids = [f"{day}-{arm}-{i}" for i in range(125)]
            times = [START_US + day * DAY_US] * len(ids)
            batch = predictions(
                ids,
                model=MODEL,
                times=times,
                version=1 + arm,
                release=1 + arm,
                role=CHALLENGER if arm else 1,
                rollout=source,
                generation=generation,
            )
            await monitor.predicted(batch)
            sold = [i for i in ids if rng.uniform() < (0.1, 0.2)[arm]]
            ones, names = [1.0] * len(sold), [f"{i}:purchase" for i in sold]
            bought = outcomes(sold, ones, name="purchase", outcome_ids=names, model=MODEL)
            await monitor.labelled(bought)
    while await count_events_once(monitor.store):
        pass


async def test_the_guide_leads_to_a_verdict(platform: Platform) -> None:
    start, create, listed, show, conclude, variants = COMMANDS
    await platform.run(start)
    async with (
        fw.Client(**platform.addresses) as client,
        gateway_with(client.registry, f"{MODEL}/releases/2"),
    ):
        rollout = await client.skip_rollout_step(f"{MODEL}/rollouts/2", "no evidence here")
    await platform.run(create)
    assert NAME in await platform.run(listed)
    assert "0 of 100 subjects" in await platform.run(show)
    await play(platform.monitor, (rollout.name, rollout.name), rollout.generation)
    shown = await platform.run(show)
    assert "SHIP" in shown and "2000 subjects" in shown
    program = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", blocks("python")[2]],
        env={**os.environ, **platform.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert program.returncode == 0, program.stderr
    assert program.stdout.startswith(f"{pb.EXPERIMENT_VERDICT_SHIP}\n- conversion +0.")
    assert "season is over" in await platform.run(conclude)
    async with fw.Client(**platform.addresses) as client:
        await client.abort_rollout(rollout.name, "no gateway here")
    assert "new" in await platform.run(variants)


async def test_named_variants_are_arms_with_their_shares(platform: Platform) -> None:
    await platform.run(COMMANDS[0])
    async with fw.Client(
        **platform.addresses
    ) as client:  # Only a version that has answered may be a variant.
        async with gateway_with(client.registry, f"{MODEL}/releases/2"):
            await client.skip_rollout_step(f"{MODEL}/rollouts/2", "no evidence here")
        await client.abort_rollout(f"{MODEL}/rollouts/2", "variants instead")
    await platform.run(COMMANDS[-1])
    declared: Any = {"name": "price", "model": "late", "primary": [fw.Metric("conversion", "purchase")]}
    async with fw.Client(**platform.addresses) as client:
        made = await client.start_experiment(fw.Experiment(control="control", treatment="new", **declared))
        against = {**declared, "name": "holdback"}
        left = await client.start_experiment(fw.Experiment(treatment="new", **against))
        with pytest.raises(ValueError, match="'old' is not a variant"):
            await client.start_experiment(fw.Experiment(control="old", treatment="new", **declared))
    arms = [(arm.source, arm.release, arm.share) for arm in (made.control, made.treatment)]
    assert [
        (f"{MODEL}/variants/control", f"{MODEL}/releases/1", 10.0),
        (f"{MODEL}/variants/new", f"{MODEL}/releases/2", 9.0),
    ] == arms
    arms = [(arm.source, arm.release, arm.share) for arm in (left.control, left.treatment)]
    assert [
        (MODEL, f"{MODEL}/releases/1", 81.0),
        (f"{MODEL}/variants/new", f"{MODEL}/releases/2", 9.0),
    ] == arms


async def test_a_rollout_in_shadow_has_no_arms(platform: Platform) -> None:
    async with fw.Client(**platform.addresses) as client:
        rollout = await client.start_rollout("late", "2")
        metrics = [fw.Metric("conversion", "purchase")]
        test = fw.Experiment(name="price", model="late", primary=metrics, rollout=rollout.name)
        with pytest.raises(ValueError, match="PENDING_LOAD at 0 %"):
            await client.start_experiment(test)
