"""Findings: one line for each rule that a decision evaluated."""

from __future__ import annotations


class Findings:
    """Collects (rule holds, line with the numbers) in the order in which the rules are evaluated."""

    def __init__(self) -> None:
        self._rules: list[tuple[bool, str]] = []

    def add(self, holds: bool, line: str) -> bool:
        """Add a finding and return `holds`."""
        self._rules.append((holds, line))
        return holds

    @property
    def passed(self) -> bool:
        """Whether every rule holds."""
        return all(holds for holds, _ in self._rules)

    def failed(self) -> list[str]:
        """Return the lines of the rules that do not hold."""
        return [line for holds, line in self._rules if not holds]

    def lines(self) -> tuple[str, ...]:
        """Return one line per rule, beginning with `passed: ` or `FAILED: `."""
        return tuple(("passed: " if holds else "FAILED: ") + line for holds, line in self._rules)

    def __bool__(self) -> bool:
        return bool(self._rules)
