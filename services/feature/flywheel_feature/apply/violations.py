"""Violations: mistakes in definitions, each with the path of the field."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from flywheel_feature.definitions.model import (
    DataType,
    ValidationRule,
)
from flywheel_feature.definitions.value_rules import mistakes

IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,62}")
RESERVED = "__"
"""Separates view and feature in a column name."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One mistake in a definition. `unknown` marks a reference to a definition that does not exist."""

    name: str
    field: str
    message: str
    unknown: bool = False


@dataclass
class Findings:
    """Collects the violations of one object."""

    name: str
    violations: list[Violation] = field(default_factory=list)

    def add(self, path: str, message: str, *, unknown: bool = False) -> None:
        self.violations.append(Violation(self.name, path, message, unknown))

    def identifier(self, path: str, value: str) -> None:
        if not IDENTIFIER.fullmatch(value) or RESERVED in value:
            self.add(path, f"{value[:80]!r} must match {IDENTIFIER.pattern} and not contain {RESERVED!r}")

    def unique(self, path: str, names: list[str]) -> None:
        for i, name in enumerate(names):
            if name in names[:i]:
                self.add(f"{path}[{i}]", f"{name!r} appears twice")

    def rule(self, path: str, rule: ValidationRule, data_type: DataType) -> None:
        for mistake in mistakes(rule, data_type):
            self.add(path, mistake)
