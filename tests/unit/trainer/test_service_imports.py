"""The trainer service starts without the large libraries that only some requests need."""

from __future__ import annotations

import subprocess
import sys

LARGE = {"onnxruntime", "pandas", "polars", "pyarrow", "ray", "torch"}


def test_the_service_imports_no_large_library_at_its_start() -> None:
    code = f"import sys, flywheel_trainer.server; print(*sorted({LARGE!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.split() == [], found.stderr
    assert found.returncode == 0, found.stderr
