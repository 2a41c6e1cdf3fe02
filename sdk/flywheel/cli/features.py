"""Commands for feature values: reads, materialization, rebuild, erasure, freshness, training sets."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.table import Table

from flywheel.cli.output import DEFAULT_LIMIT, Limit, call, console, errors, show, show_all, show_list
from flywheel.client import Client
from flywheel_protos.feature.v1 import feature_pb2
from flywheel_protos.types.v1 import value_pb2

WAITING_TOO_LONG = timedelta(seconds=30)
"""How long events may wait, unless the view promises a freshness."""

features = typer.Typer(no_args_is_help=True, help="Online features, freshness, training sets.")


@features.command("get")
def get_features(
    feature_set: str,
    entities: Annotated[str, typer.Option(help='Join keys as JSON: {"carrier": "UA"}')],
    request: Annotated[str, typer.Option(help="Request fields as JSON")] = "",
    as_of: Annotated[datetime | None, typer.Option(help="UTC; default: now")] = None,
) -> None:
    """Read the features of one entity as of a time."""
    keys = {key: [value] for key, value in json.loads(entities).items()}
    fields = {key: [value] for key, value in json.loads(request).items()} if request else None

    async def work(client: Client) -> None:
        answer = await client.online_features(feature_set, keys, fields, as_of=as_of, readable=True)
        table = Table("feature", "value", "status")
        for name, value in sorted(answer.rows[0].values.items()):
            status = feature_pb2.FeatureStatus.Name(answer.rows[0].statuses[name]).removeprefix(
                "FEATURE_STATUS_"
            )
            table.add_row(name, str(value).strip().split(": ", 1)[-1], status)
        console.print(table)

    call(work)


@features.command("materialize")
def materialize(
    view: str,
    start: Annotated[datetime | None, typer.Option(help="First event time; default: new rows only")] = None,
    end: Annotated[datetime | None, typer.Option(help="End of the event times (exclusive)")] = None,
    rows_per_second: Annotated[
        int, typer.Option(help="Write at most this many; 0: the limit of the service")
    ] = 0,
) -> None:
    """Write new rows of a batch view to the online store."""

    async def work(client: Client) -> None:
        job = await client.materialize(
            view, show_progress, start=start, end=end, rows_per_second=rows_per_second
        )
        show(job)

    call(work)


@features.command("rebuild")
def rebuild() -> None:
    """Fill an empty online store from the archives on S3."""

    async def work(client: Client) -> None:
        show(await client.rebuild_online_store(show_progress))

    call(work)


@features.command("erase")
def erase(
    entity: str, keys: Annotated[list[str], typer.Argument(help="key=value of every join key")]
) -> None:
    """Erase one entity from all stores and show what must be erased elsewhere."""

    async def work(client: Client) -> None:
        described = (
            await client.feature.GetEntity(feature_pb2.GetEntityRequest(name=client.path("entities", entity)))
        ).entity
        numbers = {k.name for k in described.join_keys if k.data_type == value_pb2.DATA_TYPE_INT64}
        given = dict(pair.split("=", 1) for pair in keys)
        typed = {k: int(v) if k in numbers else v for k, v in given.items()}
        show(await client.erase_entity(entity, typed, show_progress))

    call(work)


def show_progress(job: feature_pb2.Job) -> None:
    """Prints one line to standard error."""
    errors.print(
        f"{job.progress.done:,} of {job.progress.total:,} {job.progress.unit}: {job.progress.message}"
    )


@features.command("freshness")
def freshness() -> None:
    """Show how far streams are applied and batch views are materialized; red: events wait too long."""

    def style(fresh: Any) -> str:
        if not fresh.HasField("waiting_since"):
            return ""
        waiting = datetime.now(UTC) - fresh.waiting_since.ToDatetime(UTC)
        bound = fresh.freshness_sla.ToTimedelta() or WAITING_TOO_LONG
        return "red" if waiting > bound else ""

    async def work(client: Client) -> None:
        answer = await client.feature.GetFreshness(feature_pb2.GetFreshnessRequest(parent=client.parent))
        columns = ["name", "watermark", "lag_events", "waiting_since", "archived_events"]
        show_all(answer.freshness, columns, style)

    call(work)


@features.command("training-sets")
def training_sets(limit: Limit = DEFAULT_LIMIT) -> None:
    """List training sets, newest first."""

    async def work(client: Client) -> None:
        request = feature_pb2.ListTrainingSetsRequest(parent=client.parent)
        columns = ["name", "row_count", "label_mean", "min_time", "max_time", "content_hash"]
        await show_list(client.feature.ListTrainingSets, request, "training_sets", columns, limit)

    call(work)
