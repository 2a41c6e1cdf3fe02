"""Run the benchmarks and check their targets: `python -m bench.run [suite …] [--only text]`.

Each suite writes `bench/results/<suite>.json`, a list of
{name, value, unit, against, against_value, ratio, target, holds}.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from bench import measure

SUITES = ("feature", "inference", "monitor", "registry", "trainer")
"""Each suite is a package of this folder with `run(only) -> list[Row]`."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("suites", nargs="*", choices=[*SUITES, []], help="default: all")
    parser.add_argument("--only", default="", help="parts of the suite whose name contains this text")
    arguments = parser.parse_args()
    missed = 0
    for name in arguments.suites or SUITES:
        try:
            rows = importlib.import_module(f"bench.{name}").run(arguments.only)
        except measure.PartsFailed as failed:
            measure.console.print(f"[red]{name}: {failed}[/]")
            rows, missed = failed.rows, missed + 1
        path = measure.save(name, rows)
        measure.show(name, rows)
        measure.console.print(f"written to {path.relative_to(measure.RESULTS.parents[1])}")
        missed += sum(r.holds is False for r in rows)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
