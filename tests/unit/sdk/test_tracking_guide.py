"""The programs and commands of docs/guides/tracking.md, as they are written there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

import flywheel as fw
from flywheel.cli.main import app
from flywheel_protos.trainer.v1 import trainer_pb2 as pb
from tests.support.servers.restarted_trainer import RestartedTrainer

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "tracking.md"


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    return [body for one, body in found if one == language]


def test_the_programs_and_commands_of_the_guide_run(tmp_path: Path) -> None:
    trainer = RestartedTrainer()
    trainer.start()
    settings = {"FLYWHEEL_TRAINER_ADDRESS": trainer.address, "FLYWHEEL_SPOOL": str(tmp_path / "spool")}
    programs = blocks("python")
    assert len(programs) == 4
    for program in programs:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env={**os.environ, **settings},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    commands = [line for block in blocks("") for line in block.splitlines()]
    assert len(commands) == 2
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:], env=settings)
        assert result.exit_code == 0, result.output
    with fw.connect(trainer=trainer.address) as client:
        runs = {run.display_name: run for run in client.search_runs("experiment=tracking-guide")}
        assert {"baseline", "fold-1", "preempted", "", "xgboost", "search"} == set(runs)
        assert {pb.RUN_STATE_SUCCEEDED} == {run.state for run in runs.values()}
        assert runs["baseline"].name == runs["fold-1"].parent_run
        (curve,) = client.run_curves(runs["preempted"].name, ["loss"])
        assert list(range(60)) == curve.steps
        (best,) = client.search_runs("tags.keep=yes")
        assert ("the best one", "baseline") == (best.notes, best.display_name)
    trainer.close()
