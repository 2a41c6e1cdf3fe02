"""The trainer service starts without the large libraries that only some requests need."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "ray", "polars", "onnxruntime", "sklearn", "optuna"}:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import flywheel_trainer.__main__, flywheel_trainer.server
import flywheel_job.objects, pyarrow.dataset  # what reads the columns of a table
"""
"""Imports the service where what reads rows and models is not installed."""
LARGE = {"onnxruntime", "pandas", "polars", "pyarrow", "ray", "torch"}


def test_the_service_imports_no_large_library_at_its_start() -> None:
    code = f"import sys, flywheel_trainer.server; print(*sorted({LARGE!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.split() == [], found.stderr
    assert found.returncode == 0, found.stderr


def test_the_service_runs_without_what_reads_rows_and_models() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
