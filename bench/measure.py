"""Compares two measurements on the same machine by their ratio.

Machines are noisy and shared, so that an absolute number means little. Rounds alternate (A B B A …). The
ratio is the median of the ratios of all rounds; the two values are the medians of each side.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.h2load import ToolMissing

RESULTS = Path(__file__).parent / "results"
console = Console(width=150)


@dataclass(frozen=True, slots=True)
class Target:
    """A bound of the ratio, or with `of_value` of the value."""

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
    """One line of the result; `value` is ours, `ratio` is ours divided by theirs."""

    name: str
    value: float
    unit: str
    against: str
    against_value: float | None
    ratio: float | None
    target: str
    holds: bool | None
    """None: measured for information, without a target."""


def alternating(
    rounds: int, ours: Callable[[], float], theirs: Callable[[], float]
) -> list[tuple[float, float]]:
    """Pairs of measurements; every second round starts with the other side."""
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
    """The row of rounds of (ours, theirs)."""
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
    """Write rows to `bench/results/<suite>.json`; rows of the same name are replaced, others are kept."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{suite}.json"
    before = json.loads(path.read_text()) if path.exists() else []
    merged = {r["name"]: r for r in before} | {r.name: asdict(r) for r in rows}
    path.write_text(json.dumps(list(merged.values()), indent=1, ensure_ascii=False) + "\n")
    return path


def progress(row: Row) -> None:
    """Print a row as soon as it is measured."""
    theirs = "" if row.against_value is None else f", {row.against}: {number(row.against_value)}"
    ratio = "" if row.ratio is None else f", ratio {number(row.ratio)}"
    console.print(f"  {row.name}: {number(row.value)} {row.unit}{theirs}{ratio} ({row.target})")


class PartsFailed(Exception):
    """Parts that ended with an error; `rows` are those that were measured all the same."""

    def __init__(self, names: Sequence[str], rows: Sequence[Row]) -> None:
        super().__init__(f"parts that failed: {', '.join(names)}")
        self.rows = rows


def run_parts(suite: str, parts: Mapping[str, Callable[[str], Iterable[Row]]], only: str) -> list[Row]:
    """Run the part named `only`, or all rows whose part or name contains it.

    A part whose tool is not installed is left out. Raises PartsFailed after the last part.
    """
    found: list[Row] = []
    failed: list[str] = []
    for name, part in ({only: parts[only]} if only in parts else parts).items():
        console.print(f"{suite}: {name}")
        try:
            for row in part("" if only in name else only):
                found.append(row)
                progress(row)
        except ToolMissing as missing:
            console.print(f"  [yellow]skipped: {missing}[/]")
        except Exception:  # noqa: BLE001 - a part may fail in any way, and the others are measured
            console.print_exception()
            failed.append(name)
    if failed:
        raise PartsFailed(failed, found)
    return found


def show(suite: str, rows: Iterable[Row]) -> None:
    table = Table(title=f"bench: {suite}", title_justify="left")
    for column in ("measured", "value", "against", "its value", "ratio", "target", ""):
        table.add_column(column, justify="left" if column in ("measured", "against", "") else "right")
    verdicts = {True: "[green]holds[/]", False: "[red]missed[/]", None: ""}
    for r in rows:
        ours = r.name, f"{number(r.value)} {r.unit}"
        theirs = r.against, number(r.against_value)
        table.add_row(*ours, *theirs, number(r.ratio), r.target, verdicts[r.holds])
    console.print(table)


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
