"""Rules for entities and sources.

Each function returns the violations that it finds, with the path of the field.
"""

from __future__ import annotations

from collections.abc import Mapping

from flywheel_feature.apply.violations import Findings, Violation
from flywheel_feature.definitions.errors import InvalidUri
from flywheel_feature.definitions.model import (
    KEY_TYPES,
    DataType,
    Entity,
    Field,
    ParquetSource,
    RequestSource,
    Source,
    TableFormat,
)
from flywheel_feature.tables.addresses import object_path


def check_fields(found: Findings, path: str, fields: tuple[Field, ...]) -> None:
    found.unique(path, [f.name for f in fields])
    for i, f in enumerate(fields):
        found.identifier(f"{path}[{i}].name", f.name)
        if f.data_type.is_vector != (f.vector_size > 0):
            found.add(f"{path}[{i}].vector_size", "a vector has a size of 1 or more, every other type 0")


def check_entity(entity: Entity) -> list[Violation]:
    found = Findings(entity.name)
    if not entity.join_keys:
        found.add("join_keys", "an entity has at least one join key")
    check_fields(found, "join_keys", entity.join_keys)
    for i, key in enumerate(entity.join_keys):
        if key.data_type not in KEY_TYPES:
            found.add(f"join_keys[{i}].data_type", "a join key is BOOL, INT64, STRING or BYTES")
    return found.violations


def _check_columns(found: Findings, source: Source, columns: Mapping[str, str]) -> None:
    mapped: dict[str, str] = {}
    for stored, name in columns.items():
        path = f"parquet.columns[{stored[:80]!r}]"
        if not stored:
            found.add(path, "a column has a name")
        if source.field(name) is None:
            found.add(path, f"the schema has no field {name!r}", unknown=True)
        elif name in mapped:
            found.add(path, f"field {name!r} is also mapped from column {mapped[name]!r}")
        mapped[name] = stored
    for stored, name in columns.items():
        if stored != name and source.field(stored) is not None and stored not in mapped:
            found.add(
                f"parquet.columns[{stored[:80]!r}]",
                f"column {stored!r} is mapped to {name!r}: map the field {stored!r} from another column, "
                "or remove it",
            )


def check_source(source: Source) -> list[Violation]:
    found = Findings(source.name)
    if not source.schema:
        found.add("schema", "a source has at least one field")
    check_fields(found, "schema", source.schema)
    times = [("timestamp_field", source.timestamp_field), ("created_field", source.created_field)]
    for path, name in times:
        given = source.field(name)
        if name and given is None:
            found.add(path, f"the schema has no field {name!r}", unknown=True)
        elif given is not None and given.data_type != DataType.TIMESTAMP:
            found.add(path, f"{name!r} must be a TIMESTAMP")
    match source.kind:
        case RequestSource():
            if source.timestamp_field or source.created_field:
                found.add("timestamp_field", "a request source has no event time: leave it empty")
        case _ if not source.timestamp_field:
            found.add("timestamp_field", "name the field that holds the event time")
    if isinstance(source.kind, ParquetSource):
        try:
            object_path(source.kind.uri)
        except InvalidUri as error:
            found.add("parquet.uri", error.message)
        if source.kind.format == TableFormat.ICEBERG:
            found.add(
                "parquet.format",
                "ICEBERG tables cannot be read: write the table as DELTA or as PARQUET files instead",
            )
        _check_columns(found, source, source.kind.columns)
    if source.rules and not source.is_stream:
        found.add("rules", "only a stream source has rules: set those of a table on the features of its view")
    for i, ruled in enumerate(source.rules):
        given = source.field(ruled.field)
        if given is None:
            found.add(f"rules[{i}].field", f"the schema has no field {ruled.field!r}", unknown=True)
        else:
            found.rule(f"rules[{i}].rule", ruled.rule, given.data_type)
    return found.violations


"""Types of the fields that a function can be of."""
