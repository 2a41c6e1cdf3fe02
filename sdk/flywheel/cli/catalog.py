"""Commands for the catalog: `flywheel models search | lineage | alias | tag | delete | restore | …`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from flywheel.catalog_calls import Sort
from flywheel.cli.option_values import parse_bounds, parse_tags
from flywheel.cli.output import DEFAULT_LIMIT, Limit, call, console, errors, show, show_all, show_list
from flywheel.cli.version_argument import Version
from flywheel.client import Client
from flywheel_protos.registry.v1 import search_pb2

Reason = Annotated[str, typer.Option(help="Written to the audit log")]
FullName = Annotated[str, typer.Argument(help="Full name of a model, a version or a release")]


def search(
    *,
    metric: Annotated[
        list[str] | None, typer.Option(help="`auc>=0.8`, `log_loss<0.4`; repeat for more")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="`key=value`; repeat for more")] = None,
    stage: Annotated[list[str] | None, typer.Option(help="e.g. PRODUCTION; repeat for more")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only this model; repeat for more")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Full name of a run, training set, feature set, version, alert it was made from"),
    ] = None,
    order_by: Annotated[str, typer.Option(help="Metric to order by; default: see --sort")] = "",
    sort: Annotated[Sort, typer.Option(help="Order without a metric")] = "newest",
    descending: Annotated[bool, typer.Option(help="Largest metric, or last name, first")] = False,
    limit: Limit = DEFAULT_LIMIT,
) -> None:
    """Find versions of all models of the project."""

    async def work(client: Client) -> None:
        found = await client.search_versions(
            models=model or (),
            metrics=parse_bounds(metric or ()),
            tags=parse_tags(tag or ()),
            stages=[name.upper() for name in stage or ()],
            sources=source or (),
            order_by=order_by,
            sort=sort,
            descending=descending,
            limit=limit,
        )
        show_all(found.items, ["name", "stage", "metrics", "tags", "registered_at"])
        if found.more:
            errors.print(f"the first {limit} are shown; there are more: use --limit", highlight=False)

    call(work)


def lineage(
    resource: Annotated[str, typer.Argument(help="`model/3`, `model@alias`, or the full name of a resource")],
) -> None:
    """Show what a resource was made from, and what was made from it."""

    async def work(client: Client) -> None:
        found = await client.model_lineage(resource)
        show_all([*found.upstream, *found.downstream], ["source", "relation", "target"])
        if found.truncated:
            errors.print(
                "the nearest 1000 edges of each direction are shown; there are more", highlight=False
            )

    call(work)


def aliases(model: str, limit: Limit = DEFAULT_LIMIT) -> None:
    """List the aliases of a model."""

    async def work(client: Client) -> None:
        request = search_pb2.ListModelAliasesRequest(parent=client.path("models", model))
        columns = ["name", "model_version", "protected", "set_at", "set_by"]
        await show_list(client.registry.ListModelAliases, request, "aliases", columns, limit)

    call(work)


def alias(
    version: Annotated[str, typer.Argument(help="`model/3`, `model@alias`; with --delete only `model`")],
    alias_: Annotated[str, typer.Argument(metavar="ALIAS", help="e.g. `champion-eu`")],
    protected: Annotated[
        bool | None, typer.Option(help="Only promoters may move it; default: as it is")
    ] = None,
    delete_: Annotated[bool, typer.Option("--delete", help="Delete the alias")] = False,
    reason: Reason = "",
) -> None:
    """Let an alias name a version, or delete the alias."""

    async def work(client: Client) -> None:
        if delete_:
            await client.delete_alias(version, alias_, reason)
            console.print(f"deleted alias {alias_} of {version}", highlight=False)
        else:
            show(await client.set_alias(alias_, version, protected=protected, reason=reason))

    call(work)


def tag(
    version: Version,
    tags: Annotated[list[str] | None, typer.Argument(help="`key=value` to add or replace")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="Key to remove; repeat for more")] = None,
) -> None:
    """Change the tags of a version."""

    async def work(client: Client) -> None:
        show(await client.tag(version, parse_tags(tags or ()), remove=remove or ()))

    call(work)


def delete(
    name: FullName,
    reason: Reason = "",
    stop_serving: Annotated[bool, typer.Option(help="Archive the champion of a model first")] = False,
) -> None:
    """Delete a model, a version in stage NONE or REJECTED, or a release; what is in use is refused."""

    async def work(client: Client) -> None:
        await client.delete_registered(name, reason, stop_serving=stop_serving)
        console.print(f"deleted {name}", highlight=False)

    call(work)


def restore(name: FullName, reason: Reason = "") -> None:
    """Restore what was deleted, until its artifacts are collected."""

    async def work(client: Client) -> None:
        await client.restore_registered(name, reason)
        console.print(f"restored {name}", highlight=False)

    call(work)


def download(
    version: Version,
    to: Annotated[Path, typer.Argument(help="File to write")],
    artifact: Annotated[str, typer.Option(help="File of the version")] = "model.onnx",
) -> None:
    """Download a file of a version and check its digest."""

    async def work(client: Client) -> None:
        await client.download_artifact(version, artifact, to)
        console.print(f"written to {to}", highlight=False)

    call(work)


def collect(
    delete_: Annotated[bool, typer.Option("--delete", help="Delete; default: only count")] = False,
    grace_hours: Annotated[float, typer.Option(help="What is younger stays; at least 1")] = 168.0,
) -> None:
    """Count, or delete, stored files that no version needs any more."""

    async def work(client: Client) -> None:
        done = await client.collect_artifacts(dry_run=not delete_, grace=timedelta(hours=grace_hours))
        verb = "deleted" if delete_ else "to delete"
        console.print(
            f"{done.examined} objects examined, {done.objects} {verb} ({done.bytes} bytes), "
            f"{done.purged_versions} deleted versions beyond restoration",
            highlight=False,
        )

    call(work)


def add_commands(models: typer.Typer) -> None:
    """Adds the commands to `flywheel models`."""
    for command in (search, lineage, aliases, alias, tag, delete, restore, download, collect):
        models.command(command.__name__)(command)
