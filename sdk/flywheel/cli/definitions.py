"""Commands for definitions: plan, apply, diff, delete, list, lineage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.markup import escape

from flywheel.cli.output import DEFAULT_LIMIT, Limit, call, console, errors, show_all, show_list, state
from flywheel.cli.version_diff import diff_lines
from flywheel.client import Client
from flywheel.definitions import compile_definitions, load_module, location_of_violation
from flywheel_protos.feature.v1 import feature_pb2

UNCHANGED = feature_pb2.PlannedChange.ACTION_UNCHANGED
COLLECTIONS = {
    "entities": ("ListEntities", "entities", ["name", "join_keys", "owner", "description", "tags"]),
    "sources": ("ListSources", "sources", ["name", "owner", "description", "tags"]),
    "views": ("ListViews", "views", ["name", "entity", "owner", "description", "tags", "created_at"]),
    "featureSets": (
        "ListFeatureSets",
        "feature_sets",
        ["name", "view_versions", "owner", "description", "tags", "created_at"],
    ),
}
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation")]


def add_commands(app: typer.Typer, features: typer.Typer) -> None:
    """Adds the commands to the root and to the `features` group."""
    for command in (plan, apply, diff, delete):
        app.command()(command)
    features.command("list")(list_definitions)
    features.command("lineage")(lineage)


def plan(file: str) -> None:
    """Compare the definitions in FILE with the applied ones; change nothing."""

    async def work(client: Client) -> None:
        await _plan(client, file)

    call(work)


def apply(file: str, yes: Yes = False) -> None:
    """Show the plan for the definitions in FILE, then apply it."""
    planned: list[int] = []

    async def show_plan(client: Client) -> None:
        planned.append(await _plan(client, file))

    async def work(client: Client) -> None:
        answer = await client.apply(_compiled(client, file)[1])
        done = sum(c.action != UNCHANGED for c in answer.changes)
        console.print(f"Applied {done} changes.", highlight=False)

    call(show_plan)
    if planned == [0]:
        return
    if yes or typer.confirm("Apply?"):
        call(work)


def diff(
    target: Annotated[str, typer.Argument(help="A file, or a name such as views/facts or featureSets/late")],
    old: Annotated[int, typer.Argument(help="Version; default: the one before NEW")] = 0,
    new: Annotated[int, typer.Argument(help="Version; default: the latest")] = 0,
) -> None:
    """Show what FILE would change, or the differences between two versions of a view or feature set."""

    async def work(client: Client) -> None:
        if target.endswith(".py"):
            for change in await _planned(client, target):
                action = feature_pb2.PlannedChange.Action.Name(change.action).removeprefix("ACTION_")
                _print_lines(f"{change.name} {action}", change.differences or [""])
            return
        later = await _version(client, target, new)
        if later.version == 1 and not old:
            console.print(f"{later.name} is the first version", highlight=False)
            return
        earlier = await _version(client, target, old or later.version - 1)
        _print_lines(f"{earlier.name} -> {later.name}", diff_lines(earlier, later))

    call(work)


def delete(names: list[str], yes: Yes = False) -> None:
    """Delete definitions (views/facts featureSets/late …) together with everything that reads them."""
    if yes or typer.confirm(f"Delete {', '.join(names)}?"):

        async def work(client: Client) -> None:
            show_all((await client.delete(*names)).changes, ["action", "name"])

        call(work)


def list_definitions(
    kind: Annotated[str, typer.Argument(help="entities, sources, views or featureSets")] = "views",
    where: Annotated[
        str, typer.Option("--filter", help="tag:key=value, owner:name or text, joined by AND")
    ] = "",
    limit: Limit = DEFAULT_LIMIT,
) -> None:
    """List entities, sources, views or feature sets."""
    if kind not in COLLECTIONS:
        raise typer.BadParameter(f"{kind!r} is not one of {', '.join(COLLECTIONS)}")
    method, field, columns = COLLECTIONS[kind]

    async def work(client: Client) -> None:
        request = getattr(feature_pb2, f"{method}Request")(parent=client.parent, filter=where)
        await show_list(getattr(client.feature, method), request, field, columns, limit)

    call(work)


def lineage(name: str) -> None:
    """Show what NAME (views/facts, models/late/versions/7, …) reads, and what reads it."""

    async def work(client: Client) -> None:
        answer = await client.lineage(name)
        _warn(answer.warnings)
        if state["json"]:
            show_all([answer], [])
            return
        for title, edges in (("upstream", answer.upstream), ("downstream", answer.downstream)):
            _print_lines(title, [f"{_plain(e.read, client)} -> {_plain(e.reader, client)}" for e in edges])

    call(work)


async def _plan(client: Client, file: str) -> int:
    """Prints the planned changes and returns their number."""
    changed = await _planned(client, file)
    if changed or state["json"]:
        show_all(changed, ["action", "name", "differences", "readers"])
    else:
        console.print("Nothing to change: everything is applied as it is in the file.", highlight=False)
    return len(changed)


async def _planned(client: Client, file: str) -> list[feature_pb2.PlannedChange]:
    """The planned changes. Prints violations with file and line and exits with status 1 if there are any."""
    objects, definitions = _compiled(client, file)
    answer = await client.apply(definitions, plan=True)
    _warn(answer.warnings)
    for v in answer.violations:
        place = location_of_violation(objects, client.project, v.name, v.field)
        text = escape(f"{place + ': ' if place else ''}{v.name} {v.field}: {v.message}")
        errors.print(f"[red]{text}[/red]", highlight=False, soft_wrap=True)
    if answer.violations:
        raise typer.Exit(1)
    return [c for c in answer.changes if c.action != UNCHANGED]


def _compiled(client: Client, file: str) -> tuple[list[object], Any]:
    objects = list(vars(load_module(file)).values())
    return objects, compile_definitions(objects, client.project)


async def _version(client: Client, name: str, version: int) -> Any:
    full = client.full(name) + (f"/versions/{version}" if version else "")
    if "/featureSets/" in full:
        answer = await client.feature.GetFeatureSet(feature_pb2.GetFeatureSetRequest(name=full))
        return answer.feature_set
    return (await client.feature.GetView(feature_pb2.GetViewRequest(name=full))).view


def _print_lines(title: str, lines: Iterable[str]) -> None:
    lines = list(lines)
    if not lines:
        return
    console.print(title, highlight=False, markup=False)
    for line in lines:
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _plain(name: str, client: Client) -> str:
    return name.removeprefix(f"{client.parent}/")


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        errors.print(f"[yellow]{warning}[/yellow]", highlight=False)
