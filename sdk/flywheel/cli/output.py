"""Running and printing of commands: tables, or JSON with `--json`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flywheel.client import Client
from flywheel.errors import FlywheelError, InvalidModelError, JobFailedError
from flywheel.paging import list_items

Limit = Annotated[int, typer.Option("--limit", min=1, help="Show at most this many")]
DEFAULT_LIMIT = 1000

PIPED_COLUMNS = 2000
"""Width of output that is no terminal: a pipe gets whole names, not wrapped ones."""


def _console(*, stderr: bool = False) -> Console:
    made = Console(stderr=stderr)
    return made if made.is_terminal else Console(stderr=stderr, width=PIPED_COLUMNS)


console, errors = _console(), _console(stderr=True)
state: dict[str, Any] = {"project": "default", "json": False}


def call(work: Callable[[Client], Awaitable[None]]) -> None:
    """Runs one command with a client; an error is printed in one line and exits with status 1."""

    async def run() -> None:
        async with Client(state["project"]) as client:
            await work(client)

    try:
        asyncio.run(run())
    except FlywheelError as error:
        errors.print(f"[red]{error.reason}[/red] {escape(error.message)}", highlight=False)
        raise typer.Exit(1) from error
    except (JobFailedError, InvalidModelError, FileNotFoundError, ValueError) as error:
        errors.print(f"[red]{escape(str(error))}[/red]", highlight=False)
        raise typer.Exit(1) from error


def show(message: Message, title: str = "") -> None:
    """Prints one message: a row per field that is set."""
    if state["json"]:
        console.print_json(MessageToJson(message, preserving_proto_field_name=True))
        return
    table = Table(show_header=False, title=title or None)
    for field, _ in message.ListFields():
        table.add_row(field.name, _text(message, field.name))
    console.print(table)


def show_all(items: Any, columns: list[str], style: Callable[[Any], str] = lambda _: "") -> None:
    """Prints messages: a row each, with the named fields as columns. `style` gives a row's colour."""
    if state["json"]:
        for item in items:
            console.print_json(MessageToJson(item, preserving_proto_field_name=True))
        return
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for item in items:
        table.add_row(*[_text(item, column) for column in columns], style=style(item))
    console.print(table)


async def show_list(
    method: Callable[[Any], Awaitable[Any]], request: Message, field: str, columns: list[str], limit: int
) -> None:
    """Prints at most `limit` items of a List call, and says on standard error if there are more."""
    listing = await list_items(method, request, field, limit)
    show_all(listing.items, columns)
    if listing.more:
        errors.print(f"the first {limit} are shown; there are more: use --limit", highlight=False)


def _text(message: Message, name: str) -> str:
    value, field = getattr(message, name), message.DESCRIPTOR.fields_by_name[name]
    if field.message_type and field.message_type.full_name == "google.protobuf.Timestamp":
        return f"{value.ToDatetime():%Y-%m-%d %H:%M:%S}" if message.HasField(name) else ""
    if field.enum_type and isinstance(value, int):
        text = field.enum_type.values_by_number[value].name
        prefix = "".join("_" + c if c.isupper() else c for c in field.enum_type.name).upper().strip("_") + "_"
        return text.removeprefix(prefix)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Message):
        return MessageToJson(value, preserving_proto_field_name=True)
    if not isinstance(value, str | int | bytes):
        return "\n".join(
            f"{key}: {value[key]}" if hasattr(value, "items") else str(key).strip() for key in value
        )
    return str(value)
