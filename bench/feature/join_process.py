"""One point-in-time join in its own process: `python -m bench.feature.join_process SIDE FOLDER KNOWN`.

Prints seconds, peak MiB and a checksum. The tables are in memory before the clock starts; the peak is that of
the process from then on.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import polars as pl

COLUMNS = [f"v{i}" for i in range(10)]


def ours(spine: pl.DataFrame, rows: pl.DataFrame, known: bool) -> pl.DataFrame:
    from flywheel_feature.offline.joins.point_in_time import as_of_join

    return as_of_join(
        spine,
        rows,
        keys=["driver"],
        spine_time="asked_at",
        event_time="at",
        created_time="created" if known else None,
        columns={c: c for c in COLUMNS},
    )


def polars(spine: pl.DataFrame, rows: pl.DataFrame, _: bool) -> pl.DataFrame:
    """What a user would write by hand: sort by time, then join_asof. It ignores created times."""
    return spine.sort("asked_at").join_asof(
        rows.drop("created").sort("at"),
        left_on="asked_at",
        right_on="at",
        by="driver",
        check_sortedness=False,
    )


def main() -> None:
    side, folder, known = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "known"
    spine, rows = (
        pl.read_parquet(folder / f"{name}.parquet", use_pyarrow=False) for name in ("spine", "rows")
    )
    join = polars if side == "polars" else ours
    join(spine.head(1000), rows.head(1000), known)
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    if side == "ours_from_file":
        rows = pl.read_parquet(folder / "rows.parquet")
    joined = join(spine, rows, known)
    seconds = time.perf_counter() - started
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert peak is not None
    assert joined.height == spine.height
    total = joined.get_column("v0").sum()
    print(f"{seconds:.4f} {int(peak[1]) / 1024:.1f} {total:.6f}")


if __name__ == "__main__":
    main()
