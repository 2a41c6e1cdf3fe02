"""Commands for stages and releases: `flywheel models promote | reject | release`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import json_format

from flywheel.cli.output import call, console, show
from flywheel.cli.version_argument import Version
from flywheel.client import Client
from flywheel.release_serving import ReleaseServing
from flywheel.stage_calls import StageName
from flywheel_protos.registry.v1 import model_pb2

Reason = Annotated[str, typer.Option(help="Written to the audit log")]


def promote(
    version: Version,
    to: Annotated[StageName | None, typer.Option(help="Default: the next stage")] = None,
    reason: Reason = "",
    override: Annotated[bool, typer.Option(help="Although a gate fails; needs a reason")] = False,
) -> None:
    """Move a version to its next stage when the gates pass; exit with status 1 when one fails."""

    async def work(client: Client) -> None:
        answer = await client.promote(version, to=to, reason=reason, override=override)
        for finding in answer.evidence.findings:
            console.print(finding, highlight=False)
        stage = model_pb2.Stage.Name(answer.model_version.stage).removeprefix("STAGE_")
        console.print(f"{answer.model_version.name} is in stage {stage}", highlight=False)
        if not answer.passed and not override:
            raise typer.Exit(1)

    call(work)


def reject(version: Version, reason: Reason) -> None:
    """Move a version that does not serve to REJECTED, which is final."""

    async def work(client: Client) -> None:
        show(await client.reject(version, reason))

    call(work)


def release(
    version: Version,
    threshold: Annotated[float, typer.Option(help="Decision threshold of a binary model")] = 0.5,
    default_score: Annotated[
        float | None, typer.Option(help="What the fallback answers for a binary model or a regression")
    ] = None,
    segment_key: Annotated[
        list[str] | None, typer.Option(help="Entity key of the segments; repeat per key")
    ] = None,
    serving_policy: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with feature_policies, serving_policy (placement, cost_mode, cost) or "
            "cached_max_age, as in a Release"
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="JSON file of a Release, in place of threshold, score and keys")
    ] = None,
) -> None:
    """Create a release of a version, which a rollout or a promotion then serves."""

    async def work(client: Client) -> None:
        wanted = model_pb2.Release(threshold=threshold, segment_keys=segment_key or ())
        if default_score is not None:
            wanted.fallback.default_score = default_score
        if file is not None:
            wanted = json_format.Parse(file.read_text(), model_pb2.Release())
        serving = None if serving_policy is None else ReleaseServing.from_json(serving_policy.read_text())
        show(await client.release(version, wanted, serving=serving))

    call(work)


def add_commands(models: typer.Typer) -> None:
    """Adds the commands to `flywheel models`."""
    for command in (promote, reject, release):
        models.command(command.__name__)(command)
