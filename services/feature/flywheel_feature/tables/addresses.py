"""Addresses of tables and files: `s3://bucket/key`."""

from __future__ import annotations

import re

from flywheel_feature.definitions.errors import InvalidUri

_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)")
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
