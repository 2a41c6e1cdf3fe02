"""`flywheel policies` against a trainer in this process."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from flywheel_trainer.pipelines.definition import PipelineName
from flywheel_trainer.policies.decision import Trigger
from flywheel_trainer.policies.policy import PolicyName
from flywheel_trainer.policies.schedule import Due
from tests.support.builders.trainer import AT, score_graph
from tests.support.commands import flywheel
from tests.support.servers.trainer import MemoryTrainer, serve_in_memory

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "pipelines.md"
POLICY: dict[str, Any] = {
    "name": "late",
    "ignore_drift": True,
    "schedule": {
        "cron": "0 2 * * *",
        "pipeline": {"pipeline": "projects/p/pipelines/nightly", "params": {"table": "s3://lake/tonight"}},
    },
}


@pytest.fixture
async def trainer() -> AsyncIterator[MemoryTrainer]:
    async with AsyncExitStack() as stack:
        trainer = await serve_in_memory(stack)
        graph = score_graph(table=None, scheduled_at=None)
        await trainer.ports.definitions.apply(PipelineName("p", "nightly"), graph, "ada", AT)
        yield trainer


async def cli(trainer: MemoryTrainer, *command: str, project: str = "p") -> Any:
    return await flywheel(*command, project=project, trainer=trainer.address)


async def test_a_policy_is_set_shown_and_listed_with_its_decisions(
    trainer: MemoryTrainer, tmp_path: Path
) -> None:
    file = tmp_path / "nightly.json"
    file.write_text(json.dumps(POLICY))
    answer = await cli(trainer, "policies", "set", str(file))
    assert 0 == answer.exit_code, answer.output
    shown = json.loads((await cli(trainer, "--json", "policies", "show", "late")).stdout)
    assert ("projects/p/retrainingPolicies/late", POLICY["schedule"]["pipeline"]) == (
        shown["name"],
        shown["schedule"]["pipeline"],
    )
    assert shown == json.loads((await cli(trainer, "--json", "policies", "list")).stdout)
    await trainer.policies.decide_time(PolicyName("p", "late"), Trigger.SCHEDULE, Due(AT), AT)
    (run,) = (await trainer.ports.pipelines.list("p", (), 9, "")).items
    listed = await cli(trainer, "policies", "decisions", "late")
    for text in ("SCHEDULE", "2026-01-01 00:00:00", "STARTED", str(run.name)):
        assert text in listed.stdout


async def test_the_policy_of_the_guide_runs_the_pipeline_of_the_guide(
    trainer: MemoryTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = GUIDE.read_text().partition("### Policies of stored pipelines")[2]
    code, policy, console = re.findall(r"```(?:python|json|console)\n(.*?)```", section, re.DOTALL)[:3]
    (tmp_path / "nightly.py").write_text(code)
    (tmp_path / "nightly.json").write_text(policy)
    monkeypatch.chdir(tmp_path)
    for line in re.findall(r"^\$ flywheel (.*)$", console, re.MULTILINE):
        answer = await cli(trainer, *shlex.split(line), project="default")
        assert 0 == answer.exit_code, answer.output
    name = PolicyName("default", "late")
    await trainer.policies.decide_time(name, Trigger.SCHEDULE, Due(AT), AT)
    (run,) = (await trainer.ports.pipelines.list("default", (), 9, "")).items
    assert ["champion", "score"] == [step.step for step in run.steps]
    score = run.graph.step("score").spec["score"]
    assert ("s3://lake/users/tonight.parquet", "2026-01-01T00:00:00Z") == (score["table_uri"], score["as_of"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no RetrainingPolicy"),
        ('{"cron": 1}', "is no RetrainingPolicy"),
        ("{}", 'has no "name"'),
        (
            json.dumps(
                {
                    **POLICY,
                    "schedule": {"cron": "0 2 * * *", "pipeline": {"pipeline": "projects/p/pipelines/x"}},
                }
            ),
            "UNKNOWN_PIPELINE",
        ),
    ],
)
async def test_a_file_that_is_no_policy_is_refused_in_words(
    trainer: MemoryTrainer, tmp_path: Path, content: str, words: str
) -> None:
    file = tmp_path / "policy.json"
    file.write_text(content)
    answer = await cli(trainer, "policies", "set", str(file))
    assert 0 != answer.exit_code
    # The width of the box around an error cuts its lines.
    assert words in " ".join(answer.output.replace("│", " ").split())
    assert "" == (await cli(trainer, "--json", "policies", "list")).stdout
