"""The commands `flywheel policies …`: set, show, list, decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import Parse, ParseError

from flywheel.cli.output import DEFAULT_LIMIT, Limit, call, show, show_list
from flywheel.client import Client
from flywheel_protos.trainer.v1 import trainer_pb2

policies = typer.Typer(no_args_is_help=True, help="Retraining policies: what runs by itself, and when.")

Model = Annotated[str, typer.Argument(help="Id of the model, which is that of its policy")]
COLUMNS = ["trigger", "event_time", "alert", "started", "reason", "pipeline_run", "message"]


@policies.command("set")
def set_policy(
    file: Annotated[Path, typer.Argument(help="JSON form of a RetrainingPolicy; name: id of the model")],
) -> None:
    """Replace the policy of a model."""
    try:
        policy = Parse(file.read_text(), trainer_pb2.RetrainingPolicy())
    except (ParseError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} is no RetrainingPolicy: {error}") from error
    if not policy.name:
        raise typer.BadParameter(f'{file} has no "name": set it to the id of the model')

    async def work(client: Client) -> None:
        show(await client.set_retraining_policy(policy.name, policy))

    call(work)


@policies.command("show")
def show_policy(model: Model) -> None:
    """Show the policy of a model."""

    async def work(client: Client) -> None:
        request = trainer_pb2.GetRetrainingPolicyRequest(name=client.path("retrainingPolicies", model))
        show((await client.trainer.GetRetrainingPolicy(request)).policy)

    call(work)


@policies.command("list")
def list_policies(limit: Limit = DEFAULT_LIMIT) -> None:
    """List the policies of the project."""

    async def work(client: Client) -> None:
        request = trainer_pb2.ListRetrainingPoliciesRequest(parent=client.parent)
        columns = ["name", "disabled", "dry_run", "ignore_drift", "schedule", "continuous"]
        await show_list(client.trainer.ListRetrainingPolicies, request, "policies", columns, limit)

    call(work)


@policies.command("decisions")
def list_decisions(model: Model, limit: Limit = DEFAULT_LIMIT) -> None:
    """List the decisions of a policy, newest first: what it started, or why it did not."""

    async def work(client: Client) -> None:
        request = trainer_pb2.ListRetrainingDecisionsRequest(parent=client.path("retrainingPolicies", model))
        await show_list(client.trainer.ListRetrainingDecisions, request, "decisions", COLUMNS, limit)

    call(work)
