"""The files of a version of a Delta Lake table, through the `deltalake` package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from flywheel_common.errors import FlywheelError
from flywheel_feature.store.s3.arrow_frames import stored_types
from flywheel_feature.tables.errors import CorruptTable, TableChanged, UnknownTable, UnsupportedFormat
from flywheel_feature.tables.ports import Piece, TableSnapshot

KNOWN_FEATURES = frozenset({"timestampNtz", "vacuumProtocolCheck", "v2Checkpoint"})
"""Reader features that affect neither the rows of the files nor the names of their columns."""


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
    """The files of a version (-1: the newest) in the transaction log, by path.

    Raises NotFound UNKNOWN_TABLE, FailedPrecondition UNSUPPORTED_FORMAT, FailedPrecondition TABLE_CHANGED for
    a version that was deleted, DataLoss CORRUPT_TABLE for an invalid log, OSError when the store refuses or
    does not answer.
    """
    try:
        table = DeltaTable(uri, version=None if version < 0 else version, storage_options=dict(options))
        _check_protocol(uri, table)
        partitions = table.metadata().partition_columns
        actions = pa.table(table.get_add_actions()).to_pylist()
        schema = pa.schema(table.schema().to_arrow())
    except TableNotFoundError as error:
        raise UnknownTable(
            f"There is no Delta table at {uri}: check the address, or write it first."
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
    stored = stored_types(schema) | {name: pl.String() for name in partitions}
    return TableSnapshot(tuple(sorted(pieces, key=lambda p: p.uri)), stored, table.version())


def _check_protocol(uri: str, table: DeltaTable) -> None:
    protocol = table.protocol()
    required = set(protocol.reader_features or ())
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        required.add("columnMapping")
    unsupported = sorted(required - KNOWN_FEATURES)
    if unsupported:
        features = ", ".join(unsupported)
        raise UnsupportedFormat(
            f"{uri} requires the reader features {features}, which this service lacks: write it without them."
        )


def _text(value: Any) -> str | None:
    """A partition value as text, as in the name of a Hive folder."""
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)


def _refused(uri: str, version: int, error: DeltaError) -> FlywheelError:
    why = str(error).splitlines()[0][:160]
    if version >= 0:
        return TableChanged(
            f"The job began to read version {version} of {uri}, which cannot be read any more ({why}): "
            "submit the job again."
        )
    return CorruptTable(f"The Delta log of {uri} cannot be read: {why}")
