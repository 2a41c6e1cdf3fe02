"""What the process of the trainer imports."""

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


def test_the_service_runs_without_what_reads_rows_and_models() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
