"""Rules that values must keep when they are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flywheel_protos.feature.v1 import definitions_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What values must be when they are written. `action` says what happens to a row that breaks it: "reject" refuses the push
    (a materialization leaves the row out), "quarantine" keeps it aside as Parquet, "flag" serves and counts it."""

    min: float | None = None
    max: float | None = None
    max_null_rate: float | None = None
    allowed: Sequence[str] = ()
    action: str = "reject"

    def proto(self) -> pb.ValidationRule:
        """Raises ValueError for an action that does not exist."""
        name = f"VALIDATION_ACTION_{self.action.upper()}"
        action = pb.ValidationAction.DESCRIPTOR.values_by_name.get(name)
        if action is None:
            raise ValueError(f"{self.action!r} is no action: say reject, quarantine or flag")
        return pb.ValidationRule(
            min=self.min,
            max=self.max,
            max_null_rate=self.max_null_rate,
            allowed=self.allowed,
            action=action.number,  # type: ignore[arg-type]
        )


Rules = Mapping[str, Rule | Sequence[Rule]]
"""Name of a feature or field → its rule or rules."""


def rules_of(rules: Rules, name: str) -> list[pb.ValidationRule]:
    """The rules of one name."""
    found = rules.get(name, ())
    return [rule.proto() for rule in ([found] if isinstance(found, Rule) else found)]


def check_ruled(rules: Rules, names: Iterable[str], of: str) -> None:
    """Raises ValueError for rules of what is not among `names`."""
    unknown = set(rules) - set(names)
    if unknown:
        raise ValueError(f"{of} has rules for {', '.join(sorted(unknown))}, which it does not have")
