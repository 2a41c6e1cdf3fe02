"""The point-in-time join of a million spine rows with a million rows, compared with Polars join_asof."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from bench import measure
from bench.feature.deployment import FeatureDeployment
from bench.feature.join_process import COLUMNS
from flywheel_local.services import S3_CLIENTS

ROWS = 1_000_000
ENTITIES = 50_000
ROUNDS = 9
REPOSITORY = Path(__file__).parents[2]


def run(deployment: FeatureDeployment) -> Iterable[measure.Row]:
    folder = deployment.folder / "join"
    write_tables(folder)
    for known, bound in ((False, 1.2), (True, 2.0)):
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(run_join("ours", folder, known))
            theirs.append(run_join("polars", folder, known))
            if not known and not math.isclose(ours[-1][2], theirs[-1][2], rel_tol=1e-9):
                raise RuntimeError(f"the joins disagree: {ours[-1][2]} and {theirs[-1][2]}")
        what = f"point-in-time join, 1 M × 1 M, {'with' if known else 'without'} known_at"
        for i, (quantity, unit) in enumerate((("time", "s"), ("peak memory", "MiB"))):
            pairs = [(a[i], b[i]) for a, b in zip(ours, theirs, strict=True)]
            yield measure.compared(
                f"{what}: {quantity}", unit, "Polars join_asof", pairs, measure.at_most(bound)
            )


def run_join(side: str, folder: Path, known: bool) -> tuple[float, float, float]:
    """(seconds, peak MiB, sum of the first value) of a join in its own process."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bench.feature.join_process",
            side,
            str(folder),
            "known" if known else "plain",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        env=dict(S3_CLIENTS),
    )
    seconds, peak, total = done.stdout.split()
    return float(seconds), float(peak), float(total)


def write_tables(folder: Path) -> None:
    """Write rows of one year in random order; a fifth became known up to six hours after their event."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(11)
    year = 365 * 86400 * 1_000_000

    def times() -> np.ndarray:
        return generator.integers(0, year, ROWS) + 1_700_000_000_000_000

    names = np.array([f"driver-{i:08d}" for i in range(ENTITIES)], object)

    def keys() -> list[str]:
        return names[generator.integers(0, ENTITIES, ROWS)].tolist()

    def timestamp(values: np.ndarray) -> pl.Series:
        return pl.Series(values).cast(pl.Datetime("us", "UTC"))

    at = times()
    late = generator.integers(0, 6 * 3600 * 1_000_000, ROWS) * (generator.random(ROWS) < 0.2)
    pl.DataFrame({"driver": keys(), "asked_at": timestamp(times())}).write_parquet(folder / "spine.parquet")
    pl.DataFrame(
        {"driver": keys(), "at": timestamp(at), "created": timestamp(at + late)}
        | {name: generator.random(ROWS) for name in COLUMNS}
    ).write_parquet(folder / "rows.parquet")
