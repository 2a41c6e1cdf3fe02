"""Addresses of tables and files: `s3://bucket/key`."""

from __future__ import annotations

import re
from urllib.parse import unquote

from flywheel_feature.definitions.errors import InvalidUri

_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_HIDDEN = re.compile(r"\.|_(?!.*=)")


def object_path(uri: str) -> str:
    """`bucket/key`, without repeated and final slashes, so that every spelling names the same table.

    Raises InvalidArgument INVALID_URI.
    """
    match = _URI.fullmatch(uri)
    folders = [part for part in match.group(2).split("/") if part] if match else []
    if match is None or not folders or ".." in folders:
        raise InvalidUri(f"{uri[:200]!r} is not an address of the form s3://bucket/key.")
    return "/".join([match.group(1), *folders])


def is_data_file(path: str) -> bool:
    """Whether a path below the folder of a table is one of its files: visible, with the ending .parquet.

    Names that begin with `.` or `_` are hidden (as _manifest, .staging), but `_year=2024` is a Hive folder.
    Spark reads the same files.
    """
    return path.endswith(".parquet") and not any(_HIDDEN.match(name) for name in path.split("/"))


def hive_columns(path: str) -> tuple[tuple[str, str | None], ...]:
    """(column, value as text) of the `column=value` folders of a path below the folder of a table."""
    folders = [folder.partition("=") for folder in path.split("/")[:-1] if "=" in folder]
    return tuple(
        (unquote(name), None if value == _HIVE_NULL else unquote(value)) for name, _, value in folders
    )
