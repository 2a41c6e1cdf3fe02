"""Commands for named variants: `flywheel models variants show | set`."""

from __future__ import annotations

from typing import Annotated

import typer

from flywheel.cli.output import call, show_all
from flywheel.client import Client
from flywheel.variant_calls import Variant
from flywheel_protos.registry.v1 import registry_pb2

variants = typer.Typer(no_args_is_help=True, help="Releases beside champion and challenger.")
COLUMNS = ["name", "release", "percent", "shadow_percent"]


@variants.command("show")
def show_variants(model: str) -> None:
    """List the variants of a model, in the order in which they take their subjects."""

    async def work(client: Client) -> None:
        request = registry_pb2.GetModelRequest(name=client.path("models", model))
        show_all((await client.registry.GetModel(request)).model.variants, COLUMNS)

    call(work)


@variants.command("set")
def set_variants(
    model: str,
    reason: Annotated[str, typer.Option(help="Written to the audit log")],
    given: Annotated[
        list[str] | None,
        typer.Argument(help="name=release:percent, or name=release:percent:shadow percent; none: remove all"),
    ] = None,
) -> None:
    """Replace the variants of a model."""

    async def work(client: Client) -> None:
        found = await client.set_variants(model, map(Variant.parse, given or []), reason)
        show_all(found.variants, COLUMNS)

    call(work)
