"""Typed parameters of a job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from flywheel_job.errors import InvalidParams

P = TypeVar("P")


def parse_params(kind: type[P], values: Mapping[str, Any]) -> P:
    """An instance of the dataclass `kind`; absent parameters have the defaults of its fields.

    Types are not converted, except that whole numbers are accepted for float. Raises InvalidParams naming
    every parameter that is unknown, missing or of another type.
    """
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    problems = [
        f"{name} is unknown (known: {', '.join(sorted(known))})" for name in values if name not in known
    ]
    if not problems:
        try:
            return TypeAdapter(kind).validate_json(json.dumps(dict(values)), strict=True)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, one['loc'])) or kind.__name__} is {one['input']!r}: {one['msg']}"
                for one in error.errors(include_url=False)
            ]
    raise InvalidParams("Wrong parameters: " + "; ".join(problems) + ".")
