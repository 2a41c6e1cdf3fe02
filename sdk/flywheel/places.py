"""Where definitions were made, so that a mistake can be shown with its file and line."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

_OWN = str(Path(__file__).parent)


def here() -> str:
    """`file:line` of the nearest caller outside this package and outside generated code; empty when there is none."""
    frame = inspect.currentframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_OWN, "<")):
            return f"{_short(file)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def made_at(item: object) -> str:
    """Where a definition was made; empty when it is none."""
    return str(getattr(item, "_made_at", ""))


def place_of(item: Any, path: str) -> str:
    """Where the part of a definition was made that a field path such as `stream.aggregations[2].field` names."""
    found = re.match(r"stream\.aggregations\[(\d+)\]", path)
    if found is not None:
        parts = getattr(item, "aggregations", ())
        if int(found[1]) < len(parts):
            return made_at(parts[int(found[1])]) or made_at(item)
    return made_at(item)


def place_in(file: str, error: BaseException) -> str:
    """`file:line` of the line in `file` at which an exception left it."""
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{_short(file)}:{error.lineno}"
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"{_short(file)}:{lines[-1]}" if lines else _short(file)


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
