"""Validation rules for values when they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flywheel_protos.feature.v1 import definitions_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A condition that values must meet, and the action for a row that breaks it.

    `action`: "reject" refuses the push (a materialization leaves the row out), "quarantine" writes the row to
    Parquet instead, "flag" serves and counts it.
    """

    min: float | None = None
    max: float | None = None
    max_null_rate: float | None = None
    allowed: Sequence[str] = ()
    action: str = "reject"

    def proto(self) -> pb.ValidationRule:
        """Raises ValueError for an unknown action."""
        name = f"VALIDATION_ACTION_{self.action.upper()}"
        action = pb.ValidationAction.DESCRIPTOR.values_by_name.get(name)
        if action is None:
            raise ValueError(f"unknown action {self.action!r}: use reject, quarantine or flag")
        return pb.ValidationRule(
            min=self.min,
            max=self.max,
            max_null_rate=self.max_null_rate,
            allowed=self.allowed,
            action=action.number,  # type: ignore[arg-type]
        )


Rules = Mapping[str, Rule | Sequence[Rule]]
"""Name of a feature or field → its rule or rules."""


def rules_for(rules: Rules, name: str) -> list[pb.ValidationRule]:
    """The rules of one feature or field."""
    found = rules.get(name, ())
    return [rule.proto() for rule in ([found] if isinstance(found, Rule) else found)]


def check_rule_names(rules: Rules, names: Iterable[str], owner: str) -> None:
    """Raises ValueError for rules whose feature or field is not among `names`; `owner` is for the message."""
    unknown = set(rules) - set(names)
    if unknown:
        raise ValueError(f"{owner} has rules for {', '.join(sorted(unknown))}, which it does not have")
