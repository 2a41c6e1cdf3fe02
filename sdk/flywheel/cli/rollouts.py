"""Commands for rollouts: `flywheel models rollout start | watch | pause | resume | skip | abort |
conclude`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
from google.protobuf import json_format

from flywheel.cli.output import call, console, show
from flywheel.client import Client
from flywheel_protos.registry.v1 import model_pb2

rollout = typer.Typer(no_args_is_help=True, help="Guarded replacement of a model's champion.")

Reason = Annotated[str, typer.Option(help="Written to the audit log")]


@rollout.command("start")
def start(
    model: str,
    release: Annotated[str, typer.Argument(help="Number or full name of the release")],
    reason: Reason = "",
    policy: Annotated[
        Path | None, typer.Option(help="JSON file of a RolloutPolicy; default: the model's policy")
    ] = None,
    override: Annotated[bool, typer.Option(help="Although the offline gate fails today")] = False,
) -> None:
    """Start the rollout of a release."""

    async def work(client: Client) -> None:
        chosen = None
        if policy is not None:
            chosen = json_format.Parse(policy.read_text(), model_pb2.RolloutPolicy())
        show(await client.start_rollout(model, release, policy=chosen, reason=reason, override=override))

    call(work)


@rollout.command("watch")
def watch(name: str) -> None:
    """Print each change of a rollout until its end; exit with status 1 when it ended without promotion."""

    async def work(client: Client) -> None:
        async for seen in client.watch_rollout(name):
            state = model_pb2.RolloutState.Name(seen.state).removeprefix("ROLLOUT_STATE_")
            console.print(
                f"[bold]{state}[/bold] {seen.challenger_percent:g} % {seen.reason}", highlight=False
            )
        if seen.state != model_pb2.ROLLOUT_STATE_PROMOTED:
            raise typer.Exit(1)

    try:
        call(work)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@rollout.command("pause")
def pause(name: str, reason: Reason) -> None:
    """Pause a rollout: no decisions, the clock of its step stands still, the routing stays."""
    _changed(lambda client: client.pause_rollout(name, reason))


@rollout.command("resume")
def resume(name: str, reason: Reason) -> None:
    """Resume a paused rollout."""
    _changed(lambda client: client.resume_rollout(name, reason))


@rollout.command("skip")
def skip(name: str, reason: Reason) -> None:
    """Move to the next step without evidence; a gateway must have loaded the release."""
    _changed(lambda client: client.skip_rollout_step(name, reason))


@rollout.command("abort")
def abort(name: str, reason: Reason) -> None:
    """End a rollout; the champion serves all requests."""
    _changed(lambda client: client.abort_rollout(name, reason))


@rollout.command("conclude")
def conclude(
    name: str, verdict: Annotated[Literal["SHIP", "ROLL_BACK"], typer.Argument()], reason: Reason
) -> None:
    """End an A/B test by the verdict of its experiment."""
    _changed(lambda client: client.conclude_rollout(name, verdict, reason))


def _changed(change: Callable[[Client], Awaitable[model_pb2.Rollout]]) -> None:
    async def work(client: Client) -> None:
        show(await change(client))

    call(work)
