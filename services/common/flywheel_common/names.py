"""Parsing and formatting of resource names such as
`projects/{project}/models/{model}/versions/{version:int}`.

@dataclass(frozen=True, slots=True)
class VersionName(ResourceName):
    PATTERN: ClassVar[Pattern] = Pattern("projects/{project}/models/{model}/versions/{version:int}")
    project: str
    model: str
    version: int

VersionName.parse("projects/default/models/late/versions/3").version == 3
str(VersionName("default", "late", 3)) == "projects/default/models/late/versions/3"
"""

from __future__ import annotations

import re
from typing import ClassVar, Self

from flywheel_common.errors import InvalidId, InvalidName

ID_RULE = "[a-z][a-z0-9_-]{0,62}"
_ID = re.compile(ID_RULE)
_FIELD = re.compile(r"\{(\w+)(?::(int|any))?\}")
_KINDS = {
    "": f"(?P<%s>{ID_RULE})",
    "int": "(?P<%s>[1-9][0-9]{0,17})",
    "any": "(?P<%s>[A-Za-z0-9][A-Za-z0-9._-]{0,127})",
}


class Pattern:
    """The form of a name. `{x}` is an id, `{x:int}` a positive number, `{x:any}` a generated id (letters,
    digits, `._-`)."""

    def __init__(self, template: str) -> None:
        self.template = template
        self.form = _FIELD.sub(lambda m: "{" + m.group(1) + "}", template)
        self._kinds = {m.group(1): m.group(2) or "" for m in _FIELD.finditer(template)}
        regex, position = "", 0
        for match in _FIELD.finditer(template):
            regex += re.escape(template[position : match.start()])
            regex += _KINDS[match.group(2) or ""] % match.group(1)
            position = match.end()
        self._regex = re.compile(regex + re.escape(template[position:]))

    @property
    def fields(self) -> tuple[str, ...]:
        return tuple(self._kinds)

    def match(self, name: str) -> dict[str, str | int] | None:
        """The parts of a name, or None when it has another form."""
        found = self._regex.fullmatch(name)
        if found is None:
            return None
        return {k: int(v) if self._kinds[k] == "int" else v for k, v in found.groupdict().items()}

    def parse(self, name: str) -> dict[str, str | int]:
        """The parts of a name. Raises InvalidName with the expected form."""
        found = self.match(name)
        if found is None:
            shown = name if len(name) <= 200 else name[:200] + "…"
            raise InvalidName(
                f"{shown!r} is not a valid name: expected {self.form}, where ids match {ID_RULE}.",
                expected=self.form,
            )
        return found

    def format(self, **parts: str | int) -> str:
        """The name made of these parts. Raises InvalidName when a part is not valid."""
        name = self.form.format(**parts)
        if self._regex.fullmatch(name) is None:
            self.parse(name)
        return name


class ResourceName:
    """Base of frozen dataclasses whose fields are the parts of `PATTERN`; see the example above."""

    __slots__ = ()
    PATTERN: ClassVar[Pattern]

    @classmethod
    def parse(cls, name: str) -> Self:
        """The name as an object. Raises InvalidName."""
        return cls(**cls.PATTERN.parse(name))

    @classmethod
    def match(cls, name: str) -> Self | None:
        """Like `parse`, but returns None instead of raising."""
        found = cls.PATTERN.match(name)
        return None if found is None else cls(**found)

    def __str__(self) -> str:
        return self.PATTERN.format(**{field: getattr(self, field) for field in self.PATTERN.fields})


def check_id(value: str, field: str = "id") -> str:
    """Returns the id. Raises InvalidId with the field and the rule."""
    if _ID.fullmatch(value) is None:
        raise InvalidId(
            f"{field} {value[:80]!r} is not a valid id: it must match {ID_RULE}.",
            field=field,
        )
    return value


PROJECT = Pattern("projects/{project}")


def parse_project(parent: str) -> str:
    """The project of `projects/{project}`."""
    return str(PROJECT.parse(parent)["project"])
