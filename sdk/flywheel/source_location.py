"""Source locations (`file:line`) of definitions, for error messages."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

_PACKAGE = str(Path(__file__).parent)


def caller_location() -> str:
    """The nearest caller outside this package and outside generated code; empty when there is none."""
    frame = inspect.currentframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_PACKAGE, "<")):
            return f"{_relative(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def location_of(definition: object) -> str:
    """Where a definition was created; empty when that is unknown."""
    return str(getattr(definition, "_created_at", ""))


def location_of_part(definition: Any, path: str) -> str:
    """Where the part that a field path such as `stream.aggregations[2].field` names was created."""
    found = re.match(r"stream\.aggregations\[(\d+)\]", path)
    if found is not None:
        parts = getattr(definition, "aggregations", ())
        if int(found[1]) < len(parts):
            return location_of(parts[int(found[1])]) or location_of(definition)
    return location_of(definition)


def location_of_error(file: str, error: BaseException) -> str:
    """The line of `file` where the exception was raised, or where `file` called what raised it."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{_relative(file)}:{error.lineno}"
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"{_relative(file)}:{lines[-1]}" if lines else _relative(file)


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
