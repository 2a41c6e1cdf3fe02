"""Delta Lake tables through the `deltalake` package: which files a version consists of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from flywheel_common.errors import DataLoss, FailedPrecondition, NotFound
from flywheel_feature.store.s3.snapshots import stored_types
from flywheel_feature.tables.ports import Piece, TableSnapshot

KNOWN_FEATURES = frozenset({"timestampNtz", "vacuumProtocolCheck", "v2Checkpoint"})
"""Reader features that change nothing about which rows the files hold or what their columns are called."""


def storage_options(
    endpoint: str, access_key: str, secret_key: str, timeout_seconds: float
) -> dict[str, str]:
    return {
        "aws_endpoint": endpoint if "://" in endpoint else f"http://{endpoint}",
        "aws_access_key_id": access_key,
        "aws_secret_access_key": secret_key,
        "aws_region": "us-east-1",
        "aws_virtual_hosted_style_request": "false",
        "allow_http": str(not endpoint.startswith("https://")).lower(),
        "timeout": f"{timeout_seconds:g}s",
        "max_retries": "2",
    }


def snapshot(uri: str, options: Mapping[str, str], version: int) -> TableSnapshot:
    """Files by path, as the transaction log has them at a version (-1: the newest).

    Raises NotFound UNKNOWN_TABLE, FailedPrecondition UNSUPPORTED_FORMAT, TABLE_CHANGED for a version that is gone, DataLoss
    CORRUPT_TABLE for a log that is none, OSError when the store refuses or does not answer.
    """
    try:
        table = DeltaTable(uri, version=None if version < 0 else version, storage_options=dict(options))
        _check_protocol(uri, table)
        partitions = table.metadata().partition_columns
        actions = pa.table(table.get_add_actions()).to_pylist()
        schema = pa.schema(table.schema().to_arrow())
    except TableNotFoundError as error:
        raise NotFound(
            f"There is no Delta table at {uri}: check the address, or write it first.", reason="UNKNOWN_TABLE"
        ) from error
    except DeltaError as error:
        raise _refused(uri, version, error) from error
    pieces = [
        Piece(
            f"{uri}/{unquote(action['path'])}",
            partition=tuple((name, _text(action["partition"][name])) for name in partitions),
        )
        for action in actions
    ]
    held = pa.schema([field for field in schema if field.name not in partitions])
    return TableSnapshot(
        tuple(sorted(pieces, key=lambda p: p.uri)), stored_types(held, partitions), table.version()
    )


def _check_protocol(uri: str, table: DeltaTable) -> None:
    protocol = table.protocol()
    asked = set(protocol.reader_features or ())
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        asked.add("columnMapping")
    unknown = sorted(asked - KNOWN_FEATURES)
    if unknown:
        raise FailedPrecondition(
            f"{uri} asks its readers for {', '.join(unknown)}, which cannot be read here: write the table without.",
            reason="UNSUPPORTED_FORMAT",
        )


def _text(value: Any) -> str | None:
    """A partition value as the folder's name would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)


def _refused(uri: str, version: int, error: DeltaError) -> Exception:
    why = str(error).splitlines()[0][:160]
    if version >= 0:
        return FailedPrecondition(
            f"Version {version} of {uri}, at which the job began to read, cannot be had any more ({why}): ask again.",
            reason="TABLE_CHANGED",
        )
    return DataLoss(f"The Delta log of {uri} cannot be read: {why}", reason="CORRUPT_TABLE")
