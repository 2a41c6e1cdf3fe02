"""The trainer service runs without the packages that only jobs need."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
sys.modules.update(dict.fromkeys(("torch", "ray", "onnxscript", "sklearn")))  # an import of these fails
import flywheel_trainer.__main__
import flywheel_trainer.server
"""


def test_the_service_imports_neither_torch_nor_ray() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
