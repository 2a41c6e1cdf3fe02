"""What a measurement is: two things run in turn on the same machine, and what their ratio must be.

Machines are noisy and shared, so a number alone says little. Rounds alternate (A B A B …); the ratio is the median of the rounds'
own ratios, the two values beside it are the medians of each side.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
console = Console(width=150)


@dataclass(frozen=True, slots=True)
class Target:
    """A bound; of the ratio, or, with `of_value`, of the value itself."""

    bound: float
    at_least: bool
    of_value: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{'' if self.of_value else ' ×'}"

    def holds(self, value: float, ratio: float | None) -> bool:
        measured = value if self.of_value else ratio
        if measured is None:
            return False
        return measured >= self.bound if self.at_least else measured <= self.bound


def at_least(bound: float, *, of_value: bool = False) -> Target:
    return Target(bound, True, of_value)


def at_most(bound: float, *, of_value: bool = False) -> Target:
    return Target(bound, False, of_value)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result: `value` is ours, `ratio` is ours to theirs."""

    name: str
    value: float
    unit: str
    against: str
    against_value: float | None
    ratio: float | None
    target: str
    holds: bool | None
    """None: measured for information, nothing was promised."""


def alternating(
    rounds: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> list[tuple[float, float]]:
    """Pairs of measurements; every second round begins with the other side."""
    pairs = []
    for i in range(rounds):
        if i % 2:
            second = theirs()
            pairs.append((ours(), second))
        else:
            pairs.append((ours(), theirs()))
    return pairs


def compared(
    name: str, unit: str, against: str, pairs: Sequence[tuple[float, float]], target: Target | None
) -> Row:
    """A row out of rounds of (ours, theirs)."""
    value = statistics.median(a for a, _ in pairs)
    other = statistics.median(b for _, b in pairs)
    ratio = statistics.median(a / b for a, b in pairs)
    return row(name, value, unit, target, against, other, ratio)


def row(
    name: str,
    value: float,
    unit: str,
    target: Target | None,
    against: str = "",
    against_value: float | None = None,
    ratio: float | None = None,
) -> Row:
    holds = target.holds(value, ratio) if target is not None else None
    return Row(name, value, unit, against, against_value, ratio, str(target or ""), holds)


def save(suite: str, rows: Iterable[Row]) -> Path:
    """`bench/results/<suite>.json`; rows of the same name that were there before are replaced, others stay."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{suite}.json"
    before = json.loads(path.read_text()) if path.exists() else []
    merged = {r["name"]: r for r in before} | {r.name: asdict(r) for r in rows}
    path.write_text(json.dumps(list(merged.values()), indent=1, ensure_ascii=False) + "\n")
    return path


def show(suite: str, rows: Iterable[Row]) -> None:
    table = Table(title=f"bench: {suite}", title_justify="left")
    for column, justify in (
        ("measured", "left"), ("value", "right"), ("against", "left"), ("its value", "right"), ("ratio", "right"),
        ("target", "right"), ("", "left"),
    ):  # fmt: skip
        table.add_column(column, justify=justify)
    verdicts = {True: "[green]holds[/]", False: "[red]missed[/]", None: ""}
    for r in rows:
        table.add_row(
            r.name, f"{number(r.value)} {r.unit}", r.against, number(r.against_value), number(r.ratio), r.target,
            verdicts[r.holds],
        )  # fmt: skip
    console.print(table)


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
